FROM debian:13
ADD --checksum=sha256:6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d https://tool.example/install /tmp/install
RUN sh /tmp/install
