package main

import (
	"encoding/csv"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const fleet = "testdata/policy/fleet"

func TestPolicyEval(t *testing.T) {
	const header = "src,dst,protocol,port"
	const answerHeader = header + ",verdict\n"
	for _, c := range []struct {
		name, connections string
		want              answer
	}{
		{
			"rows stay in order, and as they were written", header + "\nshop/db,shop/db,TCP,1\nops/prom-0,shop/db,tcp,3306\nshop/web-6d4b75cb6d-x2x9q,shop/db,6,3306\n",
			answer{exitOK, answerHeader + "shop/db,shop/db,TCP,1,allow\nops/prom-0,shop/db,tcp,3306,deny\nshop/web-6d4b75cb6d-x2x9q,shop/db,6,3306,allow\n", ""},
		},
		{
			"further columns, in any order, are ignored", "time,PORT,src,dst, protocol ,note\n1,3306,ops/prom-0,shop/db,tcp,x\n2,3306,ops/prom-0,shop/db,tcp\n",
			answer{exitOK, answerHeader + "ops/prom-0,shop/db,tcp,3306,deny\nops/prom-0,shop/db,tcp,3306,deny\n", ""},
		},
		{
			"a spreadsheet's marks: byte order, carriage returns, quotes", "\xef\xbb\xbf" + header + "\r\n\"ops/prom-0\",shop/db,tcp,\"3306\"\r\n",
			answer{exitOK, answerHeader + "ops/prom-0,shop/db,tcp,3306,deny\n", ""},
		},
		{
			"addresses are pods, nodes, Services or outside", header + "\n10.244.3.1,shop/db,tcp,3306\nfd00:1::1,shop/db,tcp,3306\n203.0.113.7,shop/web-6d4b75cb6d-x2x9q,tcp,444\n" +
				"198.51.100.7,10.244.1.1,tcp,444\n192.168.0.1,10.244.1.1,tcp,9999\n192.168.0.1,10.244.2.1,tcp,9999\nops/agent,10.244.2.1,tcp,9999\n",
			answer{exitOK, answerHeader + "10.244.3.1,shop/db,tcp,3306,deny\nfd00:1::1,shop/db,tcp,3306,allow\n203.0.113.7,shop/web-6d4b75cb6d-x2x9q,tcp,444,allow\n" +
				"198.51.100.7,10.244.1.1,tcp,444,deny\n192.168.0.1,10.244.1.1,tcp,9999,allow\n192.168.0.1,10.244.2.1,tcp,9999,deny\nops/agent,10.244.2.1,tcp,9999,deny\n", ""},
		},
		{
			"what cannot be decided is unknown, and every row is written", header + "\nshop/none,shop/db,tcp,1\nshop/done,shop/db,tcp,1\nshop,shop/db,tcp,1\nops/prom-0,shop/db,tpc,1\nops/prom-0,shop/db,tcp,http\nops/prom-0,shop/db,tcp,65536\n" +
				"ops/prom-0,shop/db,tcp\nops/prom-0,shop/db,icmp,\nops/prom-0,shop/db,tcp,\n\"a,b\",\"c\"\"d\",tcp,1\nops/prom-0,shop/db,tcp,3306\n",
			answer{
				exitUndecided, answerHeader + "shop/none,shop/db,tcp,1,unknown\nshop/done,shop/db,tcp,1,unknown\nshop,shop/db,tcp,1,unknown\nops/prom-0,shop/db,tpc,1,unknown\nops/prom-0,shop/db,tcp,http,unknown\nops/prom-0,shop/db,tcp,65536,unknown\n" +
					"ops/prom-0,shop/db,tcp,,unknown\nops/prom-0,shop/db,icmp,,unknown\nops/prom-0,shop/db,tcp,,deny\n\"a,b\",\"c\"\"d\",tcp,1,unknown\nops/prom-0,shop/db,tcp,3306,deny\n",
				`-:2: pod shop/none is not among the objects
-:3: pod shop/done has ended
-:4: "shop" is neither namespace/pod nor an address
-:5: parse protocol "tpc": want tcp, udp, sctp, icmp, icmpv6 or a number up to 255
-:6: port "http": want a number from 1 to 65535
-:7: port "65536": want a number from 1 to 65535
-:8: the row has no port
-:9: cannot be decided: ingress: isolated by shop/db, and NetworkPolicy speaks of tcp, udp and sctp only: what becomes of icmp is up to the network solution
-:11: "a,b" is neither namespace/pod nor an address
`,
			},
		},
		{"no rows", header + "\n", answer{exitOK, answerHeader, ""}},
		{"no header", "ops/prom-0,shop/db,tcp,1\n", answer{exitError, "", "flowaudit: read connections: -:1: the header lacks the column src: the first line names src,dst,protocol,port\n"}},
		{"nothing", "", answer{exitError, "", "flowaudit: read connections: - is empty: the first line names the columns src,dst,protocol,port\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := invoke(c.connections, "policy", "eval", "--manifests", fleet, "--connections", "-")
			if got.code != c.want.code || got.stdout != c.want.stdout || got.stderr != c.want.stderr {
				t.Errorf("exit %d, want %d\nstdout\n%s\nwant\n%s\nstderr\n%s\nwant\n%s", got.code, c.want.code, got.stdout, c.want.stdout, got.stderr, c.want.stderr)
			}
		})
	}
	t.Run("as JSON, with the rules", func(t *testing.T) {
		got := invoke(header+",note\nops/prom-0,shop/db,tcp,3306,x\nshop/web-6d4b75cb6d-x2x9q,shop/db,tcp,3306,\nshop/none,shop/db,tcp,a\n", "policy", "eval", "--manifests", fleet, "--connections", "-", "-o", "json")
		if got.code != exitUndecided {
			t.Errorf("exit %d: %s", got.code, got.stderr)
		}
		golden(t, "policy/eval.json", got.stdout)
	})
	t.Run("more rows than one processor takes at once", func(t *testing.T) {
		var in, want strings.Builder
		in.WriteString(header + "\n")
		want.WriteString(answerHeader)
		for i := range 3*batchRows + 7 {
			row, verdict := "ops/prom-0,shop/db,tcp,3306", "deny"
			if i%3 == 0 {
				row, verdict = "10.244.1.1,shop/db,tcp,3306", "allow"
			}
			in.WriteString(row + "\n")
			want.WriteString(row + "," + verdict + "\n")
		}
		if got := invoke(in.String(), "policy", "eval", "--manifests", fleet, "--connections", "-"); got != (answer{exitOK, want.String(), ""}) {
			t.Errorf("exit %d, %d bytes, want %d: %s", got.code, len(got.stdout), want.Len(), got.stderr)
		}
	})
	t.Run("objects from standard input", func(t *testing.T) {
		objects, err := os.ReadFile(fleet + "/objects.yaml")
		if err != nil {
			t.Fatal(err)
		}
		connections := filepath.Join(t.TempDir(), "c.csv")
		if err := os.WriteFile(connections, []byte(header+"\nops/prom-0,shop/db,tcp,3306\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		got := invoke(string(objects), "policy", "eval", "--manifests", "-", "--connections", connections)
		if got != (answer{exitOK, answerHeader + "ops/prom-0,shop/db,tcp,3306,allow\n", ""}) {
			t.Errorf("%+v", got)
		}
	})
}

// What is wrong is named with file, line and field, and never passed over.
func TestPolicyBadInput(t *testing.T) {
	const shop = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: db, namespace: shop, labels: {app: db}}\n---\n"
	policy := func(spec string) string {
		return shop + "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n" + spec
	}
	for _, c := range []struct {
		name, objects string
		code          int
		stderr        string // a part of it
	}{
		{"an operator", policy("  podSelector:\n    matchExpressions:\n    - key: app\n      operator: Is\n      values: [db]\n"), exitUndecided, "-:16: NetworkPolicy shop/p: spec.podSelector.matchExpressions[0].operator: "},
		{"a CIDR", policy("  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.0.0.0/33\n"), exitUndecided, "-:17: NetworkPolicy shop/p: spec.ingress[0].from[0].ipBlock.cidr: "},
		{"a port", policy("  podSelector: {}\n  ingress:\n  - ports:\n    - port: 0\n"), exitUndecided, "-:16: NetworkPolicy shop/p: spec.ingress[0].ports[0].port: "},
		{"a protocol", policy("  podSelector: {}\n  ingress:\n  - ports:\n    - protocol: tcp\n"), exitUndecided, "-:16: NetworkPolicy shop/p: spec.ingress[0].ports[0].protocol: "},
		{"a broken document", policy("  podSelector: {}\n ingress: []\n"), exitError, "-:14: is no YAML: "},
		{"a misspelt field", policy("  podSelector: {}\n  ingres: []\n"), exitError, "-:14: NetworkPolicy shop/p: spec.ingres: unknown field"},
		{"a text for a list", policy("  podSelector: {}\n  ingress:\n  - from: all\n"), exitError, "-:15: NetworkPolicy shop/p: spec.ingress[0].from: a string where a list is wanted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			connections := filepath.Join(t.TempDir(), "c.csv")
			if err := os.WriteFile(connections, []byte("src,dst,protocol,port\nshop/web,shop/db,tcp,80\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			got := invoke(c.objects, "policy", "eval", "--manifests", "-", "--connections", connections)
			if got.code != c.code || !strings.Contains(got.stderr, c.stderr) {
				t.Errorf("exit %d, want %d; stderr\n%s\nwant %q", got.code, c.code, got.stderr, c.stderr)
			}
			if c.code == exitUndecided && !strings.Contains(got.stdout, "shop/web,shop/db,tcp,80,unknown") {
				t.Errorf("what the policy decides is not unknown: %s", got.stdout)
			}
		})
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"an unknown pod", []string{"explain", "--manifests", fleet, "--from", "shop/web", "--to", "shop/db", "--port", "1"}, exitError, "flowaudit: --from: pod shop/web is not among the objects: did you mean shop/web-6d4b75cb6d-x2x9q?\n"},
		{"a pod of another namespace", []string{"explain", "--manifests", fleet, "--from", "shop/prom-0", "--to", "shop/db", "--port", "1"}, exitError, "flowaudit: --from: pod shop/prom-0 is not among the objects: did you mean ops/prom-0?\n"},
		{"a file that is not there", []string{"lint", "--manifests", "none"}, exitError, "flowaudit: read manifests: stat none: no such file or directory\n"},
		{"a broken file", []string{"matrix", "--manifests", "testdata/policy/broken"}, exitError, "testdata/policy/broken/p.yaml:6: is no YAML: did not find expected key\nflowaudit: read manifests: 1 problem: correct it, or leave the file out\n"},
		{"no connections", []string{"eval", "--manifests", fleet}, exitUsage, "flowaudit: which connections? --connections names a CSV file\nSee flowaudit policy eval --help.\n"},
		{"standard input twice", []string{"eval", "--manifests", "-", "--connections", "-"}, exitUsage, "flowaudit: --manifests and --connections cannot both be standard input\nSee flowaudit policy eval --help.\n"},
		{"no port", []string{"explain", "--manifests", fleet, "--from", "shop/db", "--to", "shop/db"}, exitUsage, "flowaudit: which port? --port is needed for tcp\nSee flowaudit policy explain --help.\n"},
		{"a port out of range", []string{"explain", "--manifests", fleet, "--from", "shop/db", "--to", "shop/db", "--port", "70000"}, exitUsage, "flowaudit: --port \"70000\": want a number from 1 to 65535\nSee flowaudit policy explain --help.\n"},
		{"an argument for a flag", []string{"lint", "cluster"}, exitUsage, "flowaudit: unexpected argument \"cluster\": files are given by flags, such as --manifests cluster\nSee flowaudit policy lint --help.\n"},
		{"an unknown format", []string{"lint", "--manifests", fleet, "-o", "xml"}, exitUsage, "flowaudit: --output \"xml\": want text, json or sarif\nSee flowaudit policy lint --help.\n"},
		{"an unknown rule", []string{"lint", "--manifests", fleet, "--ignore", "FA999"}, exitUsage, "flowaudit: --ignore \"FA999\": no rule has this code; docs/lint lists them\nSee flowaudit policy lint --help.\n"},
		{"an unknown severity", []string{"lint", "--manifests", fleet, "--fail-on", "fatal"}, exitUsage, "flowaudit: --fail-on: severity \"fatal\": want info, warning or error, or none\nSee flowaudit policy lint --help.\n"},
		{"an unknown workload", []string{"matrix", "--manifests", fleet, "--to", "shop/none"}, exitUsage, "flowaudit: --to \"shop/none\": no workload or namespace has this name\nSee flowaudit policy matrix --help.\n"},
		{"half a change", []string{"diff", "--manifests", fleet, "--before", fleet}, exitUsage, "flowaudit: what changes? --before and --after name files and directories; without --manifests, one of them suffices: the other is the cluster\nSee flowaudit policy diff --help.\n"},
		{"no change", []string{"diff"}, exitUsage, "flowaudit: what changes? --before and --after name files and directories; without --manifests, one of them suffices: the other is the cluster\nSee flowaudit policy diff --help.\n"},
		{"all policies of no cluster", []string{"diff", "--before", fleet, "--after", fleet, "--whole"}, exitUsage, "flowaudit: --whole is about files that are applied to the cluster: without one, files are all there is\nSee flowaudit policy diff --help.\n"},
		{"files and a cluster", []string{"lint", "--manifests", fleet, "--context", "x"}, exitUsage, "flowaudit: --manifests has the objects in files: give it, or say whom to ask by --kubeconfig, --context, --in-cluster, --server or --at\nSee flowaudit policy lint --help.\n"},
		{"a cluster and a collector", []string{"lint", "--kubeconfig", "x", "--at", "2h"}, exitUsage, "flowaudit: --server and --at ask the collector, --kubeconfig, --context and --in-cluster the API server: give one\nSee flowaudit policy lint --help.\n"},
		{"two ways into a cluster", []string{"lint", "--kubeconfig", "x", "--in-cluster"}, exitUsage, "flowaudit: --kubeconfig and --in-cluster exclude each other: give one\nSee flowaudit policy lint --help.\n"},
		{"a context of nothing", []string{"lint", "--context", "x"}, exitUsage, "flowaudit: --context needs a kubeconfig: name it by --kubeconfig or $KUBECONFIG\nSee flowaudit policy lint --help.\n"},
		{"a time that is none", []string{"lint", "--at", "noon"}, exitUsage, "flowaudit: --at: \"noon\" is no time: want a duration back from now such as 5m, 2h or 7d, an RFC 3339 time, or a date\nSee flowaudit policy lint --help.\n"},
		{"no kubeconfig", []string{"lint", "--kubeconfig", "none"}, exitError, "flowaudit: read kubeconfig: stat none: no such file or directory\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := invoke("", append([]string{"policy"}, c.args...)...); got != (answer{c.code, "", c.want}) {
				t.Errorf("exit %d, stdout %q, stderr\n%s\nwant %d and\n%s", got.code, got.stdout, got.stderr, c.code, c.want)
			}
		})
	}
}

// What people read is kept in files.
func TestPolicyOutput(t *testing.T) {
	const objects, before, after = fleet + "/objects.yaml", fleet + "/policies.yaml", "testdata/policy/after"
	diff := []string{"diff", "--manifests", objects, "--before", before, "--after", after}
	for _, c := range []struct {
		file string
		code int
		args []string
	}{
		{"explain-denied.txt", exitOK, []string{"explain", "--manifests", fleet, "--from", "ops/prom-0", "--to", "shop/db", "--port", "3306"}},
		{"explain-denied.json", exitOK, []string{"explain", "--manifests", fleet, "--from", "ops/prom-0", "--to", "shop/db", "--port", "3306", "-o", "json"}},
		{"explain-allowed.txt", exitOK, []string{"explain", "--manifests", fleet, "--from", "ops/prom-0", "--to", "10.244.2.1", "--port", "8081"}},
		{"explain-open.txt", exitOK, []string{"explain", "--manifests", fleet, "--from", "ops/prom-0", "--to", "192.0.2.1", "--port", "53", "--protocol", "udp"}},
		{"explain-unknown.txt", exitUndecided, []string{"explain", "--manifests", fleet, "--from", "ops/prom-0", "--to", "shop/db", "--protocol", "icmp"}},
		{"matrix.txt", exitOK, []string{"matrix", "--manifests", fleet}},
		{"matrix-all.txt", exitOK, []string{"matrix", "--manifests", fleet, "--all", "--to", "shop/db,ops"}},
		{"matrix.csv", exitOK, []string{"matrix", "--manifests", fleet, "-o", "csv"}},
		{"matrix.json", exitOK, []string{"matrix", "--manifests", fleet, "-o", "json", "--from", "ops", "--all"}},
		{"matrix.dot", exitOK, []string{"matrix", "--manifests", fleet, "-o", "dot"}},
		{"diff.txt", exitOK, diff},
		{"diff.csv", exitOK, append(diff, "-o", "csv")},
		{"diff.json", exitChanged, append(diff, "-o", "json", "--exit-code")},
		{"diff-none.txt", exitOK, []string{"diff", "--before", fleet, "--after", fleet, "--exit-code"}},
		{"diff-workloads.txt", exitChanged, []string{"diff", "--before", fleet, "--after", fleet, "--after", "testdata/policy/more", "--exit-code"}},
		{"lint.txt", exitFoundErr, []string{"lint", "--manifests", "testdata/policy/faulty"}},
		{"lint.json", exitFoundErr, []string{"lint", "--manifests", "testdata/policy/faulty", "-o", "json"}},
		{"lint.sarif", exitFoundErr, []string{"lint", "--manifests", "testdata/policy/faulty", "-o", "sarif"}},
		{"lint-broken.txt", exitFoundErr, []string{"lint", "--manifests", "testdata/policy/broken"}},
		{"lint-nothing.txt", exitOK, []string{"lint", "--manifests", "../../examples/except"}},
		{"help.txt", exitOK, []string{"--help"}},
		{"help-eval.txt", exitOK, []string{"eval", "--help"}},
		{"help-lint.txt", exitOK, []string{"lint", "--help"}},
		{"help-diff.txt", exitOK, []string{"diff", "--help"}},
		{"help-explain.txt", exitOK, []string{"explain", "--help"}},
	} {
		t.Run(c.file, func(t *testing.T) {
			got := invoke("", append([]string{"policy"}, c.args...)...)
			if got.code != c.code {
				t.Errorf("exit %d, want %d: %s", got.code, c.code, got.stderr)
			}
			golden(t, "policy/"+c.file, got.stdout+got.stderr)
		})
	}
}

func TestLintFailsBySeverity(t *testing.T) {
	const infos, warnings, errors = "../../examples/db-policy", "testdata/policy/fleet", "testdata/policy/faulty"
	for _, c := range []struct {
		manifests, failOn string
		want              int
	}{
		{infos, "info", exitFound},
		{infos, "warning", exitOK},
		{warnings, "info", exitFound},
		{warnings, "warning", exitFound},
		{warnings, "error", exitOK},
		{errors, "error", exitFoundErr},
		{errors, "warning", exitFoundErr},
		{errors, "none", exitOK},
	} {
		if got := invoke("", "policy", "lint", "--manifests", c.manifests, "--fail-on", c.failOn); got.code != c.want {
			t.Errorf("%s with --fail-on %s: exit %d, want %d:\n%s", c.manifests, c.failOn, got.code, c.want, got.stdout)
		}
	}
	got := invoke("", "policy", "lint", "--manifests", infos, "--fail-on", "info", "--ignore", "FA801,FA802")
	if got != (answer{exitOK, "nothing found\n", ""}) {
		t.Errorf("what is ignored is found: %+v", got)
	}
}

func TestSARIFIsWhole(t *testing.T) {
	var log struct {
		Version string
		Runs    []struct {
			Tool struct {
				Driver struct{ Rules []struct{ ID string } }
			}
			Results []struct {
				RuleID    string
				RuleIndex int
				Locations []struct {
					PhysicalLocation struct{ Region struct{ StartLine int } }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(invoke("", "policy", "lint", "--manifests", "testdata/policy/faulty", "-o", "sarif").stdout), &log); err != nil {
		t.Fatal(err)
	}
	if log.Version != "2.1.0" || len(log.Runs) != 1 || len(log.Runs[0].Results) == 0 {
		t.Fatalf("%+v", log)
	}
	for _, r := range log.Runs[0].Results {
		if log.Runs[0].Tool.Driver.Rules[r.RuleIndex].ID != r.RuleID || len(r.Locations) != 1 || r.Locations[0].PhysicalLocation.Region.StartLine < 1 {
			t.Errorf("%+v", r)
		}
	}
}

func TestPolicyCompletion(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"policy lint --output ", "text\njson\nsarif\n:4\n"},
		{"policy lint --fail-on ", "info\nwarning\nerror\nnone\n:4\n"},
		{"policy matrix -o ", "text\ncsv\njson\ndot\n:4\n"},
		{"policy explain --protocol ", "tcp\nudp\nsctp\nicmp\nicmpv6\n:4\n"},
		{"policy eval --output ", "csv\njson\n:4\n"},
		{"policy diff --output ", "text\ncsv\njson\n:4\n"},
	} {
		if got := invoke("", append([]string{"__complete"}, strings.Split(c.args, " ")...)...); got.stdout != c.want {
			t.Errorf("%s completes to %q", c.args, got.stdout)
		}
	}
}

// FuzzPolicyEval: whatever a table holds, each of its rows gets an answer, or
// the table is refused.
func FuzzPolicyEval(f *testing.F) {
	f.Add("src,dst,protocol,port\nops/prom-0,shop/db,tcp,3306\n10.244.1.1,fd00::1,udp,\n")
	f.Add("port,src,dst,protocol\n\"1,2\",\"a\"\"b\",/,\n\n::1%x,/,999,0\n")
	f.Fuzz(func(t *testing.T, table string) {
		got := invoke(table, "policy", "eval", "--manifests", fleet, "--connections", "-")
		if got.code == exitError {
			return
		}
		in := csv.NewReader(strings.NewReader(strings.TrimPrefix(table, "\xef\xbb\xbf")))
		in.FieldsPerRecord, in.LazyQuotes = -1, true
		asked, err := in.ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		answers, err := csv.NewReader(strings.NewReader(got.stdout)).ReadAll()
		if err != nil || len(answers) != len(asked) {
			t.Fatalf("%d rows for %d (%v):\n%s", len(answers), len(asked), err, got.stdout)
		}
		unknown := 0
		for _, a := range answers {
			if a[4] == "unknown" {
				unknown++
			}
		}
		if (unknown > 0) != (got.code == exitUndecided) || strings.Count(got.stderr, "\n") < unknown {
			t.Errorf("exit %d with %d unknown rows: %s", got.code, unknown, got.stderr)
		}
	})
}

func TestProgress(t *testing.T) {
	var out strings.Builder
	now := time.Unix(0, 0)
	p := newProgress(environment{stderr: &out, stderrTerminal: true, now: func() time.Time { return now }}, "reading")
	p.show(1, 10)
	now = now.Add(time.Second)
	p.show(5, 10)
	p.show(6, 10) // too soon
	now = now.Add(time.Second)
	p.show(7, 0)
	p.clear()
	p.clear()
	if want := "\r\x1b[Kreading: 50 %\r\x1b[Kreading: 7\r\x1b[K"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	p = newProgress(environment{stderr: &out, now: func() time.Time { return now }}, "reading")
	now = now.Add(time.Hour)
	p.show(5, 10)
	if p.clear(); out.Len() > 0 {
		t.Errorf("without a terminal it says %q", out.String())
	}
}
