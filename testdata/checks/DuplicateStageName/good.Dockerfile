FROM debian:13 AS c-builder
RUN make

FROM golang:1.24 AS go-builder
RUN go version
