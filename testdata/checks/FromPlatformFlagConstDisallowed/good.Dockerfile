FROM --platform=linux/amd64 alpine:3.22 AS builder-amd64
RUN make

FROM --platform=$BUILDPLATFORM alpine:3.22
RUN make
