FROM alpine:3.22
ENTRYPOINT ["echo", "one"]
ENTRYPOINT ["echo", "two"]
