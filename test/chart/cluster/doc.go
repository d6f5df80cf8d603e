// Package cluster tests charts/cachalot in a real cluster: with released helm and kubectl,
// a real registry as the upstream, and nodes whose own containerd pulls through the mirror.
//
//	test/chart/cluster/run [arguments of go test]
//
// builds the programs and runs the tests. They change the cluster and clean up at the end,
// so a KUBECONFIG alone does not start them. Settings:
//
//	KUBECONFIG                     of a test cluster, with administrator rights
//	CACHALOT_TEST_CLUSTER=1        confirms that it is a test cluster
//	CACHALOT_TEST_IMPORT           a command that imports an archive, its stdin, to the nodes:
//	                               kind load image-archive /dev/stdin
//	                               ctr -n k8s.io images import -
//	CACHALOT_TEST_CERTS_D          config_path of the nodes' containerd, by default /etc/containerd/certs.d
//	CACHALOT_TEST_CONTAINERD       its socket, by default /run/containerd/containerd.sock
//	CACHALOT_TEST_HELM             Helm 4, by default helm
//	CACHALOT_TEST_COREDNS          CoreDNS, for a cluster without DNS
//
// A cluster without a default StorageClass gets volumes of a node, and one
// without DNS a CoreDNS, both for the time of the test.
package cluster
