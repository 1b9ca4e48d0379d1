package flowaudit_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/flowaudit/flowaudit/"

// pkg is what go list says of a package.
type pkg struct {
	ImportPath   string
	Name         string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Standard     bool
}

func packages(t *testing.T, args ...string) []pkg {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Name,Imports,TestImports,XTestImports,Standard"}, args...)...).Output()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// mayImport lists, for each part of the tree, which other parts it may import.
// The longest name that fits a package counts. One line a part, so that two
// changes of it rarely meet.
const mayImport = `
flow:
queries:
queries/grafana: queries
evidence: flow
policy: flow
kube: flow
policy/lint:
policy/other:
policy/history: flow policy
policy/history/historytest: flow policy/history
policy/replay: flow policy policy/history
policy/unused: flow policy policy/history policy/replay
policy/suggest: flow policy policy/history policy/replay policy/unused
proto/dial:
proto/zstd:
proto/goldmane:
proto/flowaudit/v1: flow
agent/nlmsg:
agent/confine:
agent/ipvs: flow
agent/spool:
agent/route: flow
probe:
monitor:
monitor/monitortest:
cmd/manual:
agent/calico: flow
agent/policylog: flow agent/calico
agent/follow: flow
agent/kmsg: flow
agent/hubble: flow
agent/felix: flow agent/calico proto/goldmane
agent/nflog: flow agent/nlmsg agent/calico
agent/nftable:
agent/conntrack: flow agent/nlmsg agent/nftable
agent/tap: flow agent/nlmsg agent/nftable agent/nflog agent/conntrack
agent: flow kube monitor agent/spool agent/calico agent/felix agent/follow agent/hubble agent/kmsg agent/policylog proto/dial proto/zstd proto/flowaudit/v1 agent/nflog agent/conntrack agent/tap agent/ipvs agent/route
collector/identity: flow
collector/access: flow
collector/alert: flow
collector/alert/notify: flow collector/alert
collector/rest:
collector/ledger: flow evidence collector/store
collector/store: flow
collector/store/columns: flow
collector/store/archive: flow collector/store collector/store/columns
collector/store/storetest: flow evidence queries collector/store
collector/store/duckdb: flow queries collector/store collector/store/columns
collector/store/clickhouse: flow queries collector/store collector/store/columns
collector/advice: flow kube policy/history policy/replay policy/suggest policy/unused proto/flowaudit/v1 collector/store
collector: flow evidence kube monitor policy policy/other queries proto/flowaudit/v1 collector/access collector/advice collector/alert collector/alert/notify collector/identity collector/ledger collector/rest collector/store
cmd/flowaudit-agent: flow agent agent/confine agent/nflog proto/zstd proto/flowaudit/v1
cmd/flowaudit-collector: collector collector/access collector/store collector/store/archive collector/store/clickhouse collector/store/duckdb proto/zstd proto/flowaudit/v1
cmd/flowaudit: flow evidence agent collector/alert kube policy policy/history policy/lint policy/other policy/replay policy/suggest policy/unused probe queries proto/dial proto/zstd proto/flowaudit/v1
test/netlab:
test/netlab/traffic:
demo: flow test/netlab test/netlab/traffic
bench: flow queries agent agent/nlmsg agent/nflog agent/conntrack collector collector/store collector/store/storetest collector/store/duckdb proto/dial proto/zstd proto/flowaudit/v1 test/netlab collector/store/clickhouse/clickhousetest
test/kernel:
test/chdb:
test/crash:
test/durability:
collector/store/clickhouse/clickhousetest:
`

func TestImportsRunOneWay(t *testing.T) {
	order := make(map[string][]string)
	for line := range strings.Lines(strings.TrimSpace(mayImport)) {
		part, imports, ok := strings.Cut(line, ":")
		if _, twice := order[part]; !ok || twice {
			t.Fatalf("line %q: want PART: IMPORTS..., each part once", line)
		}
		order[part] = strings.Fields(imports)
	}
	for _, p := range packages(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		if p.ImportPath+"/" == module {
			continue
		}
		allowed, known := order[name]
		if !known {
			t.Errorf("package %s has no place in the order of imports: give it one here and in docs/architecture.md", name)
			continue
		}
		for _, imported := range p.Imports {
			if own, is := strings.CutPrefix(imported, module); is && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s", name, own)
			}
		}
	}
}

func TestFlowNeedsOnlyTheStandardLibrary(t *testing.T) {
	for _, p := range packages(t, "-deps", "./flow") {
		if !p.Standard && p.ImportPath != module+"flow" {
			t.Errorf("flow depends on %s", p.ImportPath)
		}
	}
}

func TestTheAgentNeedsNoDatabaseAndNoClient(t *testing.T) {
	for _, p := range packages(t, "-deps", "./cmd/flowaudit-agent") {
		for _, banned := range []string{"github.com/duckdb", "k8s.io/client-go/kubernetes"} {
			if strings.HasPrefix(p.ImportPath, banned) {
				t.Errorf("the agent depends on %s", p.ImportPath)
			}
		}
	}
}

func TestNamesSayWhatAPackageIsFor(t *testing.T) {
	for _, p := range packages(t, "./...") {
		if slices.Contains([]string{"utils", "util", "common", "helpers", "types", "manager", "misc"}, p.Name) {
			t.Errorf("%s: the name says nothing", p.ImportPath)
		}
	}
}

func TestEveryPackageSaysItsDutyInOneSentence(t *testing.T) {
	docs := make(map[string][]string)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == "tools" || path != "." && strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		docs[dir] = append(docs[dir], doc(file)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, said := range docs {
		if len(said) != 1 {
			t.Errorf("%s has %d package comments, want one", dir, len(said))
		}
		for _, s := range said {
			if strings.Count(s, ". ")+1 != 1 || !strings.HasSuffix(strings.TrimSpace(s), ".") {
				t.Errorf("%s: the package comment is not one sentence: %q", dir, s)
			}
		}
	}
}

// doc is a file's package comment; generated files speak of their source.
func doc(file *ast.File) []string {
	if file.Doc == nil || ast.IsGenerated(file) {
		return nil
	}
	return []string{strings.Join(strings.Fields(file.Doc.Text()), " ")}
}

func TestReadmeCommandsExist(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"help", "build", "demo", "demo-cluster", "test", "lint", "bench", "soak", "fuzz", "vuln", "generate", "clean"} {
		if !strings.Contains(string(makefile), "\n"+target+":") {
			t.Errorf("Makefile has no target %s", target)
		}
	}
	for _, line := range strings.Split(string(readme), "\n") {
		if target, is := strings.CutPrefix(strings.TrimSpace(line), "make "); is && !strings.Contains(string(makefile), "\n"+strings.Fields(target)[0]+":") {
			t.Errorf("README says make %s, which is no target", target)
		}
	}
}
