FROM debian:13
RUN curl -fsSL https://tool.example/install | sh
