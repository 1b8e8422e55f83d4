ARG TAG=3.22
FROM alpine:${TAG}
RUN make
