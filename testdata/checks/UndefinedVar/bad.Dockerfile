FROM alpine:3.22
ARG SOURCE=src
COPY $SORUCE/main.c /
