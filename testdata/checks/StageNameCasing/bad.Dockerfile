FROM alpine:3.22 AS BuilderBase
RUN make
