// Package cluster tests charts/cachalot in a real cluster: with the helm and
// kubectl that people use, a real registry as the upstream, and nodes whose own
// containerd pulls through the mirror.
//
//	test/chart/cluster/run [arguments of go test]
//
// builds what it takes and runs it. It changes the cluster, and takes everything
// away again, so that a KUBECONFIG alone is not enough. Settings:
//
//	KUBECONFIG                     of a cluster to experiment with, as an administrator
//	CACHALOT_TEST_CLUSTER=1        yes, that one
//	CACHALOT_TEST_IMPORT           a command that gives its nodes the images of an archive, its stdin
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
