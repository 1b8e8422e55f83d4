# a stage for tools
FROM alpine:3.22 AS tools
# which one to build
ARG VERSION=1
