package chart

import (
	"fmt"
	"go/constant"
	"go/types"
	"regexp"
	"strconv"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	sigsyaml "sigs.k8s.io/yaml"
)

const (
	kib = 1 << 10
	mib = 1 << 20

	// perConnection is the maximum for a client's connection: TLS, a header of the largest
	// size with the most fields, and a body that the client reads slowly. Heap and stacks
	// with 997 of them, after a collection, were 489 KiB each; with one field 175 KiB,
	// between two requests 28 KiB.
	perConnection = 512 * kib
	// measuredHeader is the bound on headers at that measurement.
	measuredHeader = 16 * kib
	// perDownload is a chunk and the connection to a registry: measured 193 KiB, plus some
	// 30 KiB for TLS.
	perDownload = 256 * kib
	// process is the rest of a busy process, as in docs/operations.md. index is the index's
	// entries in memory, as in storage/index/recent.go.
	process = 40 * mib
	index   = 8 * mib
	// bodies is the share of GOMEMLIMIT, 1 in this many, for manifests, lists and other
	// content in memory.
	bodies = 4
)

// constants returns the constants of a folder.
func constants(t *testing.T, folder string) func(name string) int64 {
	t.Helper()
	scope := goPackage(t, "../../"+folder).Scope()
	return func(name string) int64 {
		c, ok := scope.Lookup(name).(*types.Const)
		if !ok {
			t.Fatalf("no constant %s in %s", name, folder)
		}
		n, exact := constant.Int64Val(c.Val())
		if !exact {
			t.Fatalf("%s in %s is %s", name, folder, c.Val())
		}
		return n
	}
}

// fixedMemory is the maximum for the process without connections and downloads.
func fixedMemory(t *testing.T) int64 {
	t.Helper()
	storage, download, command := constants(t, "storage"), constants(t, "storage/download"), constants(t, "cmd/cachalot/server")
	pieces := download("maxPieces") * download("pieceSize")
	bulk := command("maxBulk") * (2*command("bulkSize") + command("bulkSize")/16)
	return process + index + storage("maxContent") + pieces + bulk
}

// memory is the container's memory, and cachalot's limits.
type memory struct {
	limit, gomemlimit  int64 // 0: none
	connections, fills int64
}

func memoryOf(t *testing.T, r rendered) memory {
	t.Helper()
	bytes := func(quantity string) int64 {
		q, err := resource.ParseQuantity(strings.TrimSuffix(quantity, "B"))
		if err != nil {
			t.Fatalf("%s: %v", quantity, err)
		}
		return q.Value()
	}
	c := statefulSet(t, r).Spec.Template.Spec.Containers[0]
	m := memory{limit: c.Resources.Limits.Memory().Value()}
	for _, e := range c.Env {
		if e.Name == "GOMEMLIMIT" && e.Value != "" {
			m.gomemlimit = bytes(e.Value)
		}
	}
	for _, file := range []string{readFile(t, "../../config.yml"), config(t, r)} { // defaults, then the chart's configuration
		var c struct {
			MaxConnections *int64 `json:"max_connections"`
			Storage        struct {
				MaxFills *int64 `json:"max_fills"`
			}
		}
		if err := sigsyaml.Unmarshal([]byte(file), &c); err != nil {
			t.Fatal(err)
		}
		if c.MaxConnections != nil {
			m.connections = *c.MaxConnections
		}
		if c.Storage.MaxFills != nil {
			m.fills = *c.Storage.MaxFills
		}
	}
	return m
}

// checkMemory checks that the memory limit covers what the release allows.
func checkMemory(t *testing.T, r rendered) {
	t.Helper()
	m := memoryOf(t, r)
	if m.gomemlimit == 0 {
		if m.limit != 0 && len(statefulSet(t, r).Spec.Template.Spec.Containers[0].Env) == 0 {
			t.Errorf("a memory limit of %d MiB, and no GOMEMLIMIT", m.limit/mib)
		}
		return
	}
	most := fixedMemory(t) + m.connections*perConnection + m.fills*perDownload + m.gomemlimit/bodies
	if most > m.gomemlimit {
		t.Errorf("%d connections and %d downloads take %d MiB at most, and GOMEMLIMIT is %d MiB", m.connections, m.fills, most/mib, m.gomemlimit/mib)
	}
	if m.limit != 0 && m.gomemlimit >= m.limit {
		t.Errorf("GOMEMLIMIT is %d MiB, and the memory limit %d MiB", m.gomemlimit/mib, m.limit/mib)
	}
}

// TestMemory: GOMEMLIMIT leaves a tenth of the limit to memory outside Go. max_connections
// is as many as fit, unless values say less.
func TestMemory(t *testing.T) {
	if header := constants(t, "cmd/cachalot/server")("maxHeader"); header != measuredHeader {
		t.Errorf("headers may have %d bytes, and %d had those of which the memory was measured: measure again", header, measuredHeader)
	}
	for values, want := range map[string]memory{
		`{}`:                                         {1024 * mib, 921 * mib, 997, 256},
		`{resources: {limits: {memory: 2G}}}`:        {2e9, 1716 * mib, 2190, 256},
		`{resources: {limits: {memory: 8Gi}}}`:       {8192 * mib, 7372 * mib, 10_000, 256},
		`{resources: {limits: {memory: 512Mi}}}`:     {512 * mib, 460 * mib, 306, 256},
		`{resources: {limits: {memory: 536870912}}}`: {512 * mib, 460 * mib, 306, 256},
		`{resources: {limits: {memory: 256Mi}}, config: {storage: {max_fills: 64}}}`: {256 * mib, 230 * mib, 57, 64},
		`{resources: {limits: {memory: null, cpu: 1}}}`:                              {0, 0, 10_000, 256},
		`{resources: null}`: {0, 0, 10_000, 256},
		`{extraEnv: [{name: GOMEMLIMIT, value: 600MiB}]}`:                                   {1024 * mib, 600 * mib, 516, 256},
		`{extraEnv: [{name: GOMEMLIMIT, value: 1GiB}], resources: null}`:                    {0, 1024 * mib, 1152, 256},
		`{extraEnv: [{name: GOMEMLIMIT, valueFrom: {configMapKeyRef: {name: a, key: b}}}]}`: {1024 * mib, 0, 997, 256},
		`{config: {max_connections: 997}}`:                                                  {1024 * mib, 921 * mib, 997, 256},
		`{config: {max_connections: 50, storage: {max_fills: 300}}}`:                        {1024 * mib, 921 * mib, 50, 300},
		`{config: {max_connections: 15000}, resources: {limits: {memory: 16Gi}}}`:           {16384 * mib, 14745 * mib, 15000, 256},
	} {
		r := render(t, "mirror", values)
		if got := memoryOf(t, r); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", values, got, want)
		}
		checkMemory(t, r)
	}
}

// TestMemoryDocs: docs/kubernetes.md has the numbers that the chart computes.
func TestMemoryDocs(t *testing.T) {
	rows := regexp.MustCompile(`(?m)^\| (\d+[MG]i) \| (\d+) \|$`).FindAllStringSubmatch(readFile(t, "../../docs/kubernetes.md"), -1)
	if len(rows) < 3 {
		t.Errorf("%d rows", len(rows))
	}
	for _, row := range rows {
		r := render(t, "mirror", fmt.Sprintf("{resources: {limits: {memory: %s}}}", row[1]))
		if got := strconv.FormatInt(memoryOf(t, r).connections, 10); got != row[2] {
			t.Errorf("%s holds %s connections, and the page says %s", row[1], got, row[2])
		}
	}
}

// TestMemoryRefused: if values need more memory than they allow, the error says how much is enough.
func TestMemoryRefused(t *testing.T) {
	for values, want := range map[string]string{
		`{config: {max_connections: 998}}`:                                                     "resources.limits.memory holds 997 of 998 connections",
		`{config: {max_connections: 1000000}}`:                                                 "resources.limits.memory holds 997 of 1000000 connections",
		`{config: {storage: {max_fills: 3000}}}`:                                               "resources.limits.memory holds 0 of 16 connections",
		`{resources: {limits: {memory: 256Mi}}}`:                                               "resources.limits.memory holds 0 of 16 connections",
		`{config: {max_connections: 600}, extraEnv: [{name: GOMEMLIMIT, value: 600MiB}]}`:      "GOMEMLIMIT in extraEnv holds 516 of 600 connections",
		`{extraEnv: [{name: GOMEMLIMIT, value: 200MiB}], resources: {limits: {memory: null}}}`: "GOMEMLIMIT in extraEnv holds 0 of 16 connections",
		`{extraEnv: [{name: GOMEMLIMIT, value: 1GiB}]}`:                                        "GOMEMLIMIT in extraEnv is 1GiB, and resources.limits.memory 1Gi",
		`{extraEnv: [{name: GOMEMLIMIT, value: 2GiB}], resources: {limits: {memory: 2G}}}`:     "GOMEMLIMIT in extraEnv is 2GiB, and resources.limits.memory 2G",
	} {
		_, err := tryRender(t, loadChart(t), "mirror", values)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", values, err, want)
			continue
		}
		enough := submatch(t, `set it (?:below that, )?to (\w+)`, err.Error())[0]
		parsed := parse(t, values)
		if strings.Contains(want, "resources.limits.memory holds") {
			parsed["resources"] = map[string]any{"limits": map[string]any{"memory": enough}}
		} else {
			parsed["extraEnv"] = []any{core.EnvVar{Name: "GOMEMLIMIT", Value: enough}}
		}
		followed, err := sigsyaml.Marshal(parsed)
		if err != nil {
			t.Fatal(err)
		}
		r, err := tryRender(t, loadChart(t), "mirror", string(followed))
		if err != nil {
			t.Errorf("%s: set to %s: %v", values, enough, err)
			continue
		}
		checkMemory(t, rendered{objects: decode(t, r.Manifest)})
	}
}
