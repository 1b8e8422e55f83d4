FROM registry.example/for-every-platform
COPY app /
