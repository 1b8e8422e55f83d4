FROM registry.example/only-arm
COPY app /
