package chart

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	network "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// caller is a client of the mirror's pod: another pod, or an address outside the cluster's
// pods, such as a node's.
type caller struct {
	pod, namespace labels.Set
	name           string // of the namespace
	address        string
}

// callers returns them by name. An ipBlock matches addresses, not the cluster's pods.
func callers(t *testing.T, r rendered) map[string]caller {
	t.Helper()
	test := all[*core.Pod](r)[0]
	in := func(namespace string, pod labels.Set) caller {
		return caller{pod: pod, name: namespace, namespace: labels.Set{"kubernetes.io/metadata.name": namespace}}
	}
	return map[string]caller{
		"node":      {address: "192.0.2.1"},
		"job":       in("gitlab-runner", labels.Set{"job": "1"}),
		"neighbour": in(namespace, labels.Set{"app": "other"}),
		// With the labels of the Prometheus operator.
		"prometheus": in("monitoring", labels.Set{"app.kubernetes.io/name": "prometheus", "app.kubernetes.io/managed-by": "prometheus-operator"}),
		"agent":      in("monitoring", labels.Set{"app.kubernetes.io/name": "prometheus-agent", "app.kubernetes.io/managed-by": "prometheus-operator"}),
		"grafana":    in("monitoring", labels.Set{"app.kubernetes.io/name": "grafana"}),
		"helm test":  in(test.Namespace, test.Labels),
	}
}

// isPeer reports whether a caller matches a policy's peer.
func (c caller) isPeer(t *testing.T, policy *network.NetworkPolicy, peer network.NetworkPolicyPeer) bool {
	t.Helper()
	matches := func(selector *meta.LabelSelector, set labels.Set) bool {
		s, err := meta.LabelSelectorAsSelector(selector)
		if err != nil {
			t.Fatal(err)
		}
		return s.Matches(set)
	}
	switch {
	case peer.IPBlock != nil:
		return c.address != "" && netip.MustParsePrefix(peer.IPBlock.CIDR).Contains(netip.MustParseAddr(c.address))
	case c.address != "":
		return false
	case peer.NamespaceSelector == nil:
		return c.name == policy.Namespace && matches(peer.PodSelector, c.pod)
	default:
		return matches(peer.NamespaceSelector, c.namespace) && (peer.PodSelector == nil || matches(peer.PodSelector, c.pod))
	}
}

// reach returns the callers that a release's policies allow to a port of the mirror, as
// Kubernetes defines it.
func reach(t *testing.T, r rendered, port string) string {
	t.Helper()
	var policies []*network.NetworkPolicy
	for _, p := range all[*network.NetworkPolicy](r) {
		selector, err := meta.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			t.Fatal(err)
		}
		if selector.Matches(labels.Set(statefulSet(t, r).Spec.Template.Labels)) && slices.Contains(p.Spec.PolicyTypes, network.PolicyTypeIngress) {
			policies = append(policies, p)
		}
	}
	var in []string
	for name, c := range callers(t, r) {
		open := len(policies) == 0
		for _, p := range policies {
			for _, rule := range p.Spec.Ingress {
				ports := len(rule.Ports) == 0 || slices.ContainsFunc(rule.Ports, func(q network.NetworkPolicyPort) bool { return q.Port.String() == port })
				from := len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(peer network.NetworkPolicyPeer) bool { return c.isPeer(t, p, peer) })
				open = open || ports && from
			}
		}
		if open {
			in = append(in, name)
		}
	}
	slices.Sort(in)
	return strings.Join(in, ", ")
}

const anyone = "agent, grafana, helm test, job, neighbour, node, prometheus"

// TestNetworkPolicy: by default all callers pull, also nodes. Only "helm test" reaches the
// admin port, and Prometheus if it scrapes.
func TestNetworkPolicy(t *testing.T) {
	const monitoring = `{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}`
	for values, want := range map[string]struct{ clients, admin string }{
		`{}`:                                {anyone, "helm test"},
		`{nodes: {enabled: true}}`:          {anyone, "helm test"},
		`{networkPolicy: {enabled: false}}`: {anyone, anyone},
		`{tls: {secretName: web}}`:          {anyone, "helm test"},
		`{fullnameOverride: hub, config: {listen: ":80", admin: {listen: ":9090"}}}`:                  {anyone, "helm test"},
		`{metrics: {serviceMonitor: {enabled: true}}}`:                                                {anyone, "agent, helm test, prometheus"},
		`{metrics: {podMonitor: {enabled: true}}}`:                                                    {anyone, "agent, helm test, prometheus"},
		`{metrics: {prometheusRule: {enabled: true, selector: 'a="b"'}, dashboard: {enabled: true}}}`: {anyone, "helm test"},
		`{metrics: {podMonitor: {enabled: true}}, networkPolicy: {prometheus: []}}`:                   {anyone, "helm test"},
		`{metrics: {podMonitor: {enabled: true}}, networkPolicy: {prometheus: [` + monitoring + `]}}`: {anyone, "agent, grafana, helm test, prometheus"},
		`{networkPolicy: {admin: [` + monitoring + `]}}`:                                              {anyone, "agent, grafana, helm test, prometheus"},
		`{networkPolicy: {admin: [{ipBlock: {cidr: 192.0.2.0/24}}]}}`:                                 {anyone, "helm test, node"},
		`{networkPolicy: {clients: [{ipBlock: {cidr: 192.0.2.0/24}}]}}`:                               {"helm test, node", "helm test"},
		`{networkPolicy: {clients: [` + monitoring + `]}}`:                                            {"agent, grafana, helm test, prometheus", "helm test"},
		`{networkPolicy: {ingress: [{ports: [{port: 15008}]}]}}`:                                      {anyone, "helm test"},
	} {
		r := render(t, "mirror", values)
		port := statefulSet(t, r).Spec.Template.Spec.Containers[0].Ports[0].Name
		if got := reach(t, r, port); got != want.clients {
			t.Errorf("%s: %s is open to %s; want %s", values, port, got, want.clients)
		}
		if got := reach(t, r, "admin"); got != want.admin {
			t.Errorf("%s: admin is open to %s; want %s", values, got, want.admin)
		}
		if got, want := reach(t, r, "15008"), map[bool]string{true: anyone, false: ""}[strings.Contains(values, "15008") || strings.Contains(values, "false")]; got != want {
			t.Errorf("%s: another port is open to %q; want %q", values, got, want)
		}
	}
}

// TestNetworkPolicyEgress: the mirror's egress is limited only if values say so.
func TestNetworkPolicyEgress(t *testing.T) {
	for name, c := range choices() {
		for _, p := range all[*network.NetworkPolicy](render(t, "mirror", c.values)) {
			if limited := slices.Contains(p.Spec.PolicyTypes, network.PolicyTypeEgress); limited != strings.Contains(c.values, "egress:") || limited != (len(p.Spec.Egress) > 0) {
				t.Errorf("%s: %v, egress %v", name, p.Spec.PolicyTypes, p.Spec.Egress)
			}
		}
	}
}
