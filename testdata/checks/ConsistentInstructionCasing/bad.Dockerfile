FROM alpine:3.22
run make
COPY a /a
