FROM alpine:3.22
RUN --mount=type=secret,id=aws,env=AWS_SECRET_ACCESS_KEY upload
