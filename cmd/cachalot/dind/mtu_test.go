package dind

import (
	"fmt"
	"strings"
	"testing"
)

const (
	routeHead = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
	viaEth0   = routeHead + "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\neth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
)

// network is a network with the given MTU for IPv4.
func network(mtu string, more ...string) map[string]string {
	there := map[string]string{"/proc/net/route": viaEth0, "/sys/class/net/eth0/mtu": mtu + "\n"}
	for i := 0; i < len(more); i += 2 {
		there[more[i]] = more[i+1]
	}
	return there
}

func TestMTU(t *testing.T) {
	t.Parallel()
	const (
		json = "/etc/docker/daemon.json"
		opt  = "--default-network-opt=bridge=com.docker.network.driver.mtu="
		line = "eth0, the default route's interface, has an MTU of 1400: dockerd gets "
	)
	checkAll(t, []scene{
		{name: "low", there: network("1400"), wantArgs: []string{hubFlag, "--mtu=1400", opt + "1400"}, wantLog: usual(line + "--mtu=1400 " + opt + "1400")},
		{name: "usual", there: network("1500"), wantArgs: []string{hubFlag}, wantLog: usual()},
		{name: "jumbo", there: network("9001"), wantArgs: []string{hubFlag}, wantLog: usual()},
		{name: "nonsense", there: network("1"), wantArgs: []string{hubFlag}, wantLog: usual()},
		{name: "garbled", there: network("many"), wantArgs: []string{hubFlag}, wantLog: usual()},
		{name: "argument", there: network("1400"), args: []string{"--mtu", "1350"}, wantArgs: []string{"--mtu", "1350", hubFlag, opt + "1400"}, wantLog: usual(line + opt + "1400")},
		{name: "daemon.json", there: network("1400", json, `{"mtu": 0}`), wantArgs: []string{hubFlag, opt + "1400"}, wantLog: usual(line + opt + "1400")},
		{
			name: "both", there: network("1400", json, `{"mtu": 1350, "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1350"}}}`),
			wantArgs: []string{hubFlag}, wantLog: usual(),
		},
		{
			name: "both arguments", there: network("1400"), args: []string{"--mtu=1350", opt + "1350"},
			wantArgs: []string{"--mtu=1350", opt + "1350", hubFlag}, wantLog: usual(),
		},
		{
			name: "other network options", there: network("1400"), args: []string{"--default-network-opt", "bridge=x=y"},
			wantArgs: []string{"--default-network-opt", "bridge=x=y", hubFlag, "--mtu=1400", opt + "1400"}, wantLog: usual(line + "--mtu=1400 " + opt + "1400"),
		},
		{
			name: "other network options in daemon.json", there: network("1400", json, `{"default-network-opts": {"bridge": {"x": "y"}}}`),
			wantArgs: []string{hubFlag, "--mtu=1400"},
			wantLog: usual(line+"--mtu=1400",
				`warning: networks other than the default one keep their MTU: add "bridge": {"com.docker.network.driver.mtu": "1400"} to default-network-opts in /etc/docker/daemon.json`),
		},
		{name: "old", version: "23.0.6", there: network("1400"), wantArgs: []string{hubFlag, plainFlag, "--mtu=1400"}, wantLog: []string{strings.Replace(oldHub, "20.10.24", "23.0.6", 1), line + "--mtu=1400", buildersAsk}},
		{
			name: "rootless", uid: 1000, there: network("1400"), wantArgs: []string{hubFlag, "--mtu=1400", opt + "1400"},
			wantEnv: map[string]string{"DOCKERD_ROOTLESS_ROOTLESSKIT_MTU": "1400"},
			wantLog: []string{
				askedFirst, line + "--mtu=1400 " + opt + "1400 DOCKERD_ROOTLESS_ROOTLESSKIT_MTU=1400",
				strings.ReplaceAll(buildersAsk, "/root", "/home/me"),
			},
		},
		{
			name: "rootless, set", uid: 1000, env: []string{"DOCKERD_ROOTLESS_ROOTLESSKIT_MTU=1300"}, there: network("1400"),
			wantArgs: []string{hubFlag, "--mtu=1400", opt + "1400"},
			wantLog:  []string{askedFirst, line + "--mtu=1400 " + opt + "1400", strings.ReplaceAll(buildersAsk, "/root", "/home/me")},
		},
	})
}

func TestLowMTU(t *testing.T) {
	t.Parallel()
	line := func(name, destination, flags, metric, mask string) string {
		return fmt.Sprintf("%s\t%s\t00000000\t%s\t0\t0\t%s\t%s\t0\t0\t0\n", name, destination, flags, metric, mask)
	}
	six := func(destination, prefix, metric, flags, name string) string {
		const zero = "00000000000000000000000000000000"
		return fmt.Sprintf("%s %s %s 00 fe800000000000000000000000000001 %s 00000001 00000000 %s %8s\n", destination, prefix, zero, metric, flags, name)
	}
	const any6 = "00000000000000000000000000000000"
	for name, tc := range map[string]struct {
		route, route6, want string
	}{
		"none":           {routeHead, "", ""},
		"no table":       {"", "", ""},
		"lowest metric":  {routeHead + line("a", "00000000", "0003", "100", "00000000") + line("b", "00000000", "0003", "20", "00000000"), "", "b 1401"},
		"first of equal": {routeHead + line("a", "00000000", "0003", "0", "00000000") + line("b", "00000000", "0003", "0", "00000000"), "", "a 1400"},
		"down":           {routeHead + line("a", "00000000", "0002", "0", "00000000"), "", ""},
		"reject":         {routeHead + line("a", "00000000", "0203", "0", "00000000"), "", ""},
		"half of all":    {routeHead + line("a", "00000000", "0001", "0", "00000080"), "", ""},
		"short line":     {routeHead + "a\t00000000\n" + line("b", "00000000", "0003", "x", "00000000"), "", ""},
		"IPv6":           {routeHead, six(any6, "00", "00000400", "00000003", "b"), "b 1401"},
		"IPv6 metric":    {routeHead, six(any6, "00", "00000400", "00000003", "b") + six(any6, "00", "00000040", "00000003", "a"), "a 1400"},
		"IPv6 rejects":   {routeHead, six(any6, "00", "ffffffff", "00200200", "lo"), ""},
		"IPv6 reject":    {routeHead, six(any6, "00", "00000400", "00000201", "a"), ""},
		"IPv6 net":       {routeHead, six("fe8"+any6[3:], "40", "00000100", "00000001", "a") + six(any6, "03", "00000100", "00000001", "a"), ""},
		"the lower":      {routeHead + line("b", "00000000", "0003", "0", "00000000"), six(any6, "00", "00000400", "00000003", "a"), "a 1400"},
		"one without":    {routeHead + line("tun0", "00000000", "0003", "0", "00000000"), six(any6, "00", "00000400", "00000003", "b"), "b 1401"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := Root(t.TempDir())
			put(t, root, "/sys/class/net/a/mtu", "1400\n")
			put(t, root, "/sys/class/net/b/mtu", "1401\n")
			put(t, root, "/sys/class/net/lo/mtu", "1300\n")
			if tc.route != "" {
				put(t, root, "/proc/net/route", tc.route)
			}
			if tc.route6 != "" {
				put(t, root, "/proc/net/ipv6_route", tc.route6)
			}
			got := ""
			if name, mtu := root.lowMTU(); name != "" {
				got = fmt.Sprintf("%s %d", name, mtu)
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func FuzzRoutes(f *testing.F) {
	f.Add("eth0 00000000 010011AC 0003 0 0 0 00000000 0 0 0")
	f.Add("00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe80 00000400 0 0 00000003 eth0")
	f.Fuzz(func(t *testing.T, line string) {
		fields := strings.Fields(line)
		if name, _, ok := routeIPv4(fields); ok && name != fields[0] {
			t.Errorf("IPv4: %q", name)
		}
		if name, _, ok := routeIPv6(fields); ok && name != fields[9] {
			t.Errorf("IPv6: %q", name)
		}
	})
}
