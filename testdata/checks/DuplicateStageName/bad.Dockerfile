FROM debian:13 AS builder
RUN make

FROM golang:1.24 AS builder
RUN go version
