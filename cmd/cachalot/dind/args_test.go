package dind

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestFlagsAt(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]int{ // -1: another command
		"": 0, "-D": 0, "--": 0, "-": 0, "dockerd": 1, "dockerd x": 1, "/usr/bin/dockerd -D": 1, "dockerd-entrypoint.sh": 1,
		"dockerd-entrypoint.sh -D": 1, "dockerd-entrypoint.sh dockerd -D": 2, "dockerd-entrypoint.sh sh": -1, "sh": -1, "sh dockerd": -1, "docker": -1,
	} {
		at, ok := flagsAt(strings.Fields(args))
		if !ok {
			at = -1
		}
		if at != want {
			t.Errorf("%q: %d, want %d", args, at, want)
		}
	}
}

// Every form of a flag that pflag accepts.
func TestParseFlags(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-s", "v"},
		{"-s=v"},
		{"-sv"},
		{"-Ds", "v"},
		{"-Ds=v"},
		{"-Dsv"},
		{"--storage-driver", "v"},
		{"--storage-driver=v"},
		{"-H", "tcp://x", "-sv"},
		{"-Htcp://s", "-s", "x", "-s", "v"},
		{"--unknown", "x", "-sv"},
		{"--unknown=x", "-sv"},
		{"--tlsverify", "-sv"},
		{"-sv", "--", "-sx"},
	} {
		f, err := parseFlags(args)
		if err != nil || f.storageDriver != "v" || !f.given["storage-driver"] {
			t.Errorf("%q: %v, %q", args, err, f.storageDriver)
		}
	}
	f, err := parseFlags([]string{"--registry-mirror=a,b", "--registry-mirror", "c", "--mtu", "1", "-G", "g"})
	if err != nil || !slices.Equal(f.registryMirrors, []string{"a,b", "c"}) || !f.given["mtu"] || f.given["config-file"] {
		t.Errorf("%v, %+v", err, f)
	}
	for _, args := range [][]string{{"--mtu"}, {"-s"}, {"-D", "-H"}, {"---"}, {"--=x"}, {"-D=x"}} {
		if _, err := parseFlags(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// dockerdFlags are all flags of dockerd 29.
func dockerdFlags() *pflag.FlagSet {
	fs := pflag.NewFlagSet("dockerd", pflag.ContinueOnError)
	for name := range strings.FieldsSeq(`registry-mirror insecure-registry storage-opt authorization-plugin exec-opt data-root exec-root
		containerd feature default-network-opt mtu network-control-plane-mtu network-diagnostic-port log-format dns dns-opt dns-search
		host-gateway-ip label log-driver log-opt max-concurrent-downloads max-concurrent-uploads max-download-attempts shutdown-timeout
		default-stop-timeout swarm-default-advertise-addr metrics-addr node-generic-resource containerd-namespace containerd-plugins-namespace
		default-runtime http-proxy https-proxy no-proxy cdi-spec-dir nri-opts add-runtime default-ulimit bip bip6 fixed-cidr fixed-cidr-v6
		default-gateway default-gateway-v6 ip userland-proxy-path bridge-accept-fwmark cgroup-parent userns-remap init-path cpu-rt-period
		cpu-rt-runtime seccomp-profile default-shm-size default-ipc-mode default-address-pool firewall-backend default-cgroupns-mode
		config-file tlscacert tlscert tlskey`) {
		fs.StringArray(name, nil, "")
	}
	for name, letter := range map[string]string{"pidfile": "p", "log-level": "l", "group": "G", "storage-driver": "s", "bridge": "b", "host": "H"} {
		fs.StringArrayP(name, letter, nil, "")
	}
	for name := range strings.FieldsSeq(`cri-containerd raw-logs experimental selinux-enabled iptables ip6tables ip-forward ip-forward-no-drop
		ip-masq ipv6 icc userland-proxy allow-direct-routing live-restore init no-new-privileges rootless validate tls tlsverify`) {
		fs.Bool(name, false, "")
	}
	for name, letter := range map[string]string{"restart": "r", "version": "v", "debug": "D", "help": "h"} {
		fs.BoolP(name, letter, false, "")
	}
	return fs
}

// read parses arguments as dockerd does: flags with their values in order, and the rest.
func read(args []string) (values map[string][]string, rest []string, err error) {
	values = make(map[string][]string)
	fs := dockerdFlags()
	err = fs.ParseAll(args, func(flag *pflag.Flag, value string) error {
		values[flag.Name] = append(values[flag.Name], value)
		return nil
	})
	return values, fs.Args(), err
}

// dockerd reads the user's arguments the same with and without ours.
func FuzzArguments(f *testing.F) {
	for _, args := range []string{
		"", "-D", "dockerd", "dockerd\n--host=x\n-lwarn", "--registry-mirror\nx", "--registry-mirror=x", "-s\nvfs\n--", "--\n--mtu=1",
		"--config-file\n/d.json", "--default-network-opt=bridge=com.docker.network.driver.mtu=1", "--label\nx=y\n--mtu\n1", "-Hx\n-", "sh\n-c",
	} {
		f.Add(args)
	}
	root := Root(f.TempDir())
	for path, content := range network("1400") {
		if err := root.write(File{Path: path, Content: []byte(content)}); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\n")
		in := Input{Args: args, Env: []string{"CACHALOT_MIRROR=" + mirrorURL}, Home: "/root", Root: root, Registries: []string{hub}}
		plan, err := NewPlan(in)
		if err != nil {
			t.Fatal(err)
		}
		at, daemon := flagsAt(args)
		if !daemon {
			if !slices.Equal(plan.Args, args) {
				t.Fatalf("%q became %q", args, plan.Args)
			}
			return
		}
		before, rest, err := read(args[at:])
		if err != nil {
			return // dockerd does not start
		}
		for _, v := range slices.Concat(slices.Collect(maps.Values(before))...) {
			if strings.HasPrefix(v, "-") {
				return // a value such as "--" of a flag that parseFlags does not know
			}
		}
		if len(plan.Args) < at || !slices.Equal(plan.Args[:at], args[:at]) {
			t.Fatalf("%q became %q", args, plan.Args)
		}
		after, restAfter, err := read(plan.Args[at:])
		if err != nil || !slices.Equal(rest, restAfter) {
			t.Fatalf("%q became %q: %v, %q", args, plan.Args, err, restAfter)
		}
		want := maps.Clone(before)
		if before["registry-mirror"] == nil {
			want["registry-mirror"] = []string{mirrorURL}
		}
		if before["mtu"] == nil {
			want["mtu"] = []string{"1400"}
		}
		const opt = "bridge=" + mtuOption + "="
		if !slices.ContainsFunc(before["default-network-opt"], func(v string) bool { return strings.HasPrefix(v, opt) }) {
			want["default-network-opt"] = append(slices.Clone(before["default-network-opt"]), opt+"1400")
		}
		if !maps.EqualFunc(after, want, slices.Equal) {
			t.Fatalf("%q became %q:\n got %q\nwant %q", args, plan.Args, after, want)
		}
	})
}
