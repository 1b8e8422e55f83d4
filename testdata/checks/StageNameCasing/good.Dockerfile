FROM alpine:3.22 AS builder-base
RUN make
