
…s
^oci-layout://demo/demo@sha256:c042baf5a1d714a100fb2e47c3739fb211923b24bf659a12088a286367cdd119
	oci.storedemoR
amd64linux
€
I
Gsha256:25b55754fe411e92322d6d7a0069f2494131d1bd840dc03ae103caacb6079103"31ÿÿÿÿÿÿÿÿÿ*$
/hello¤from a build
(€€¨±ãŸçË
K
I
Gsha256:f5a1187c07af2f400689ba1b0231a0469371dd1481f4b7376619e371a86ce822