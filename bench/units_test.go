package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseUnits(t *testing.T) {
	got := parseUnits(`goos: linux
pkg: example.org/x/policy
BenchmarkDecide/known-edge-2   	 8805552	       155.0 ns/op	       2 B/op	       0 allocs/op
BenchmarkBuild-2           	       1	2012184871 ns/op	         2.012 s/build
BenchmarkBroken
PASS
ok  	example.org/x/policy	1.2s
`)
	want := []unit{
		{"policy", "Decide/known-edge", map[string]float64{"ns/op": 155, "B/op": 2, "allocs/op": 0}},
		{"policy", "Build", map[string]float64{"ns/op": 2012184871, "s/build": 2.012}},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(unit{})); d != "" {
		t.Error(d)
	}
	for ns, text := range map[float64]string{43.2: "43 ns", 1255: "1.3 µs", 40.4e6: "40.4 ms", 2.012e9: "2.01 s"} {
		if got := duration(ns); got != text {
			t.Errorf("%v ns are %q, want %q", ns, got, text)
		}
	}
}
