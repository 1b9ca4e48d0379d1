package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// unit is a benchmark of a package, as go test prints it.
type unit struct {
	pkg     string // its last element
	name    string // without Benchmark
	figures map[string]float64
}

// units runs packages' own benchmarks.
func units(ctx context.Context, pattern string, packages ...string) ([]unit, error) {
	args := append([]string{"test", "-run", "^$", "-bench", pattern, "-benchmem"}, packages...)
	out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run benchmarks: %w: %s", err, out)
	}
	return parseUnits(string(out)), nil
}

// parseUnits reads lines of the form "BenchmarkX-2  100  12.3 ns/op  0 B/op".
func parseUnits(text string) []unit {
	var all []unit
	pkg := ""
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == "pkg:" {
			pkg = filepath.Base(f[1])
		}
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		if i := strings.LastIndex(name, "-"); i > 0 {
			name = name[:i] // the number of processors
		}
		u := unit{pkg, name, make(map[string]float64)}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				u.figures[f[i+1]] = v
			}
		}
		all = append(all, u)
	}
	return all
}

// duration says nanoseconds in the unit that people read.
func duration(ns float64) string {
	switch {
	case ns >= 1e9:
		return fmt.Sprintf("%.2f s", ns/1e9)
	case ns >= 1e6:
		return fmt.Sprintf("%.1f ms", ns/1e6)
	case ns >= 1e3:
		return fmt.Sprintf("%.1f µs", ns/1e3)
	}
	return fmt.Sprintf("%.0f ns", ns)
}

// benchDecode runs the decoders' own benchmarks.
func benchDecode(ctx context.Context, _ options) ([]result, error) {
	all, err := units(ctx, "Decode", "./agent/nflog", "./agent/conntrack")
	var out []result
	for _, u := range all {
		what := "decode one " + u.pkg + " message " + strings.TrimPrefix(strings.TrimPrefix(u.name, "Decode"), "/")
		out = append(out, result{strings.TrimSpace(what), "flowaudit", []string{duration(u.figures["ns/op"]), fmt.Sprintf("%.0f allocations", u.figures["allocs/op"])}})
	}
	return out, err
}

// benchNames measures who had an address, in a cluster of 5,000 nodes, 150,000
// pods and 10,000 Services.
func benchNames(ctx context.Context, _ options) ([]result, error) {
	return named(ctx, map[string]string{
		"Build": "build the index", "Memory": "memory of the index", "Lookup": "who had an address",
		"LookupOutside": "an address that nobody had", "Apply": "apply a pod's change",
	}, "^Benchmark(Build|Memory|Lookup|LookupOutside|Apply)$", "./kube")
}

// benchPolicy measures judging: 5,000 pods in 200 namespaces, 2,000 policies;
// suggestion and replay over 20,000 edges and 3 million edge-hours.
func benchPolicy(ctx context.Context, _ options) ([]result, error) {
	return named(ctx, map[string]string{
		"Compile": "compile 2,000 policies", "Change/policy": "change a policy", "Change/policy-new-peers": "change a policy to other peers",
		"Change/namespace": "change a namespace's labels", "Change/pod": "change a pod", "Decide/known": "decide about a known edge",
		"Decide/new": "decide about a new edge", "PolicyEval": "policy eval, 1 million connections, whole process",
		"SuggestMonth": "suggest -A over 30 days", "ReplayMonth": "replay 200 policies over 30 days", "EdgesOfAMonth": "read the edges of 30 days",
	}, "^Benchmark(Compile|Change|Decide|PolicyEval|SuggestMonth|ReplayMonth|EdgesOfAMonth)$",
		"./policy", "./cmd/flowaudit", "./policy/suggest", "./policy/replay", "./collector/store/duckdb")
}

// named runs benchmarks and tells those that have a name for people.
func named(ctx context.Context, names map[string]string, pattern string, packages ...string) ([]result, error) {
	all, err := units(ctx, pattern, packages...)
	var out []result
	for _, u := range all {
		what, ok := names[u.name]
		if !ok {
			continue
		}
		figures := []string{duration(u.figures["ns/op"]), fmt.Sprintf("%.0f allocations", u.figures["allocs/op"])}
		if v, ok := u.figures["B/pod"]; ok {
			figures = []string{fmt.Sprintf("%.0f bytes a pod", v)}
		}
		out = append(out, result{what, "flowaudit", figures})
	}
	return out, err
}
