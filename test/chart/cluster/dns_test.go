package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// corefile is for a kubelet without a cluster domain: its pods have no search list, so
// their queries lack the suffixes of other pods.
const corefile = `.:%d {
	errors
	ready :%d
	rewrite stop {
		name regex ^([^.]+[.][^.]+)[.]svc[.]$ {1}.svc.cluster.local.
		answer auto
	}
%s	kubernetes cluster.local {
		kubeconfig /etc/coredns/kubeconfig
	}
}
`

const ofOne = `	rewrite stop {
		name regex ^(%s-cachalot(-headless)?)[.]$ {1}.%s.svc.cluster.local.
		answer auto
	}
`

// dns brings CoreDNS to a cluster without DNS. It uses the node's network, because a
// kube-apiserver on loopback is reachable only there.
func (c *cluster) dns(t *testing.T, releases map[string]string) {
	t.Helper()
	if s, err := c.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", meta.GetOptions{}); err == nil {
		c.say(t, "DNS is at %s", s.Spec.ClusterIP)
		return
	}
	program := os.Getenv("CACHALOT_TEST_COREDNS")
	if program == "" {
		t.Fatal("there is no Service kube-dns, and CACHALOT_TEST_COREDNS does not say where CoreDNS is")
	}
	var kubelet struct {
		KubeletConfig struct {
			ClusterDNS    []string `json:"clusterDNS"`
			ClusterDomain string   `json:"clusterDomain"`
		} `json:"kubeletconfig"`
	}
	b, err := c.CoreV1().RESTClient().Get().Resource("nodes").Name(c.node).SubResource("proxy").Suffix("configz").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &kubelet); err != nil || len(kubelet.KubeletConfig.ClusterDNS) == 0 {
		t.Fatalf("the kubelet's clusterDNS: %v: %s", err, b)
	}
	c.bring(t, "coredns", "0:0", program)

	const port, ready = 10053, 18181 // on the node
	const dns = "dns"
	var each strings.Builder
	for release, namespace := range releases {
		fmt.Fprintf(&each, ofOne, release, namespace)
	}
	_, err = c.CoreV1().Secrets(c.tools).Create(t.Context(), &core.Secret{
		ObjectMeta: meta.ObjectMeta{Name: dns},
		StringData: map[string]string{"Corefile": fmt.Sprintf(corefile, port, ready, each.String()), "kubeconfig": c.mayRead(t)},
	}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.pod(t, c.tools, &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: dns, Labels: map[string]string{"app": dns}},
		Spec: core.PodSpec{
			HostNetwork: true,
			Volumes:     []core.Volume{{Name: dns, VolumeSource: core.VolumeSource{Secret: &core.SecretVolumeSource{SecretName: dns}}}},
			Containers: []core.Container{{
				Image: c.image("coredns"), ImagePullPolicy: core.PullNever,
				Args:           []string{"-conf", "/etc/coredns/Corefile"},
				VolumeMounts:   []core.VolumeMount{{Name: dns, MountPath: "/etc/coredns"}},
				ReadinessProbe: &core.Probe{PeriodSeconds: 1, ProbeHandler: core.ProbeHandler{HTTPGet: &core.HTTPGetAction{Path: "/ready", Port: intstr.FromInt(ready)}}},
			}},
		},
	})
	t.Cleanup(func() {
		if err := c.CoreV1().Pods(c.tools).Delete(withoutEnd(t), dns, meta.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		c.onNode(t, "forget", "/host"+c.socket, c.image("coredns"))
	})
	_, err = c.CoreV1().Services(c.tools).Create(t.Context(), &core.Service{
		ObjectMeta: meta.ObjectMeta{Name: dns},
		Spec: core.ServiceSpec{
			ClusterIP: kubelet.KubeletConfig.ClusterDNS[0], Selector: map[string]string{"app": dns},
			Ports: []core.ServicePort{
				{Name: "udp", Protocol: core.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt(port)},
				{Name: "tcp", Protocol: core.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt(port)},
			},
		},
	}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.ready(t, c.tools, dns)
	c.say(t, "there is no DNS: CoreDNS at %s", kubelet.KubeletConfig.ClusterDNS[0])
}

// mayRead returns a kubeconfig with the read rights that DNS needs.
func (c *cluster) mayRead(t *testing.T) string {
	t.Helper()
	name := "cachalot-test-" + c.suffix
	look := []string{"list", "watch"}
	_, err := c.RbacV1().ClusterRoles().Create(t.Context(), &rbac.ClusterRole{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Rules: []rbac.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"services", "namespaces", "pods"}, Verbs: look},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: look},
		},
	}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.RbacV1().ClusterRoles().Delete(withoutEnd(t), name, meta.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	_, err = c.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbac.ClusterRoleBinding{
		ObjectMeta: meta.ObjectMeta{Name: name},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbac.Subject{{Kind: rbac.ServiceAccountKind, Namespace: c.tools, Name: "default"}},
	}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.RbacV1().ClusterRoleBindings().Delete(withoutEnd(t), name, meta.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 30*time.Second, "the service account", func(ctx context.Context) (bool, string) {
		_, err := c.CoreV1().ServiceAccounts(c.tools).Get(ctx, "default", meta.GetOptions{})
		return err == nil, fmt.Sprint(err)
	})
	token, err := c.CoreV1().ServiceAccounts(c.tools).CreateToken(t.Context(), "default", &authentication.TokenRequest{
		Spec: authentication.TokenRequestSpec{ExpirationSeconds: new(int64(3600))},
	}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: c.rest.Host, CertificateAuthorityData: c.rest.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	config.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "c"
	b, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
