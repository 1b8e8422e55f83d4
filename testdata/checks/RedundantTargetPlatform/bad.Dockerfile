FROM --platform=$TARGETPLATFORM alpine:3.22
RUN make
