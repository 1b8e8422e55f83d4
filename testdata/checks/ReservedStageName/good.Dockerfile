FROM alpine:3.22 AS builder
RUN make
