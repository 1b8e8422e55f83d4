FROM alpine:3.22 as builder
RUN make
