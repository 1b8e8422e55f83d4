FROM alpine:3.22
ARG SOURCE=src
COPY $SOURCE/main.c /
