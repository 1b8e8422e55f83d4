ARG TAG
FROM alpine:${TAG}
RUN make
