FROM alpine:3.22
CMD my-server --port 80
