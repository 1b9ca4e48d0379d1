package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
	"github.com/flowaudit/flowaudit/test/cluster/product"
)

// readerRights are what the readers of the matrix may: one reads two namespaces,
// one by what the role view is made of, one has another right, and one none at all.
const readerRights = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: readers-flows}
rules: [{apiGroups: [""], resources: [pods/log], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: readers-pods}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: readers-everything}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: readers-flows}
subjects: [{kind: ServiceAccount, name: chief, namespace: readers-a}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: readers-pods}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: readers-pods}
subjects: [{kind: ServiceAccount, name: nobody, namespace: readers-a}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: flows, namespace: readers-a}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: readers-flows}
subjects: [{kind: ServiceAccount, name: developer, namespace: readers-a}, {kind: ServiceAccount, name: both, namespace: readers-a}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: flows, namespace: readers-b}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: readers-flows}
subjects: [{kind: ServiceAccount, name: both, namespace: readers-a}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: view, namespace: readers-b}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:aggregate-to-view'}
subjects: [{kind: ServiceAccount, name: viewer, namespace: readers-a}]
`

// readable are the namespaces of each reader of the matrix, by their numbers.
var readable = map[string]string{"chief": "abc", "developer": "a", "both": "ab", "viewer": "b", "nobody": ""}

// matrixEnd is the pod of a namespace, or an address outside. What names it
// holds its secret: alpha-, beta- or gamma-.
func matrixEnd(n int) (netip.Addr, *flow.Endpoint) {
	if n == 3 {
		return netip.MustParseAddr("203.0.113.77"), &flow.Endpoint{Kind: flow.EndpointOutside}
	}
	secret := matrixSecrets[n][0]
	return netip.MustParseAddr(matrixSecrets[n][1]), &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: "readers-" + "abc"[n:n+1], Pod: secret + "pod", Workload: flow.Workload{Kind: "Deployment", Name: secret + "workload"},
		Node: secret + "node", Identity: uint64(0xabc0 + n), Labels: map[string]string{"app": secret + "label"},
	}
}

// matrixSecrets tell of the namespaces' pods: what their names begin with, and
// their addresses.
var matrixSecrets = [3][2]string{{"alpha-", "10.201.1.1"}, {"beta-", "10.201.2.2"}, {"gamma-", "10.201.3.3"}}

// matrixBatch has a refused and an allowed flow of each pair of ends.
func matrixBatch() flow.Batch {
	now := time.Now().Truncate(time.Millisecond)
	b := flow.Batch{
		Key:  flow.BatchKey{Cluster: "default", Instance: "readers", Epoch: uint64(now.UnixNano()), Sequence: 1},
		Node: "readers-node", Start: now.Add(-time.Minute), End: now,
	}
	for i := range 4 {
		for j := range 4 {
			for _, v := range []flow.Verdict{flow.VerdictDenied, flow.VerdictAllowed} {
				f := flow.Flow{
					Key:   flow.Key{Protocol: flow.TCP, Port: uint16(1000 + 100*i + 10*j + int(v)), Verdict: v, Direction: flow.DirectionEgress},
					Start: now.Add(-30 * time.Second), End: now.Add(-20 * time.Second), Cluster: "default", Node: "readers-node", SourcePort: 4000, Connections: 3,
					Reason: flow.ReasonLogged, Sources: flow.SourceNFLOG,
				}
				f.Src, f.Source = matrixEnd(i)
				f.Dst, f.Destination = matrixEnd(j)
				if j < 3 {
					f.Policies = []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: f.Destination.Namespace, Name: matrixSecrets[j][0] + "policy", Rule: "ingress[0]", Side: "ingress"}}
					f.Service = &flow.Service{Addr: netip.MustParseAddr("10.202.0." + fmt.Sprint(j+1)), Port: 80, Namespace: f.Destination.Namespace, Name: matrixSecrets[j][0] + "service"}
				}
				b.Flows = append(b.Flows, f)
			}
		}
	}
	return b
}

// matrixQuestions are commands of flowaudit; whole are those that need everything.
func matrixQuestions(t *testing.T) (some, whole [][]string) {
	t.Helper()
	for _, format := range []string{"compact", "table", "wide", "json", "yaml", "jsonpath={.destination}"} {
		some = append(some, []string{"observe", "--all", "-o", format}, []string{"observe", "--all", "--verdict", "denied", "-o", format})
	}
	for _, filter := range []string{
		"-n readers-b", "-n readers-c", "-n nowhere", "--to-namespace readers-b", "--from-namespace readers-c", "--last 3", "--first 3", "--port 80",
		"--not -n readers-b", "--verdict allowed", "--all", "--all --refused-at ingress", "--since 1h",
	} {
		some = append(some, append([]string{"observe", "-o", "json"}, strings.Fields(filter)...))
	}
	for _, q := range queries.All() {
		for _, format := range []string{"table", "json", "csv"} {
			ask := []string{"query", q.Name, "-o", format}
			for _, a := range q.Args {
				switch {
				case a.Name == "hosts" || a.Name == "ports":
					ask = append(ask, "--arg", a.Name+"=1")
				case a.Name == "namespace" && a.Required:
					ask = append(ask, "--arg", "namespace=readers-b")
				case a.Name == "workload":
					ask = append(ask, "--arg", "workload="+matrixSecrets[1][0]+"workload")
				case a.Name == "address":
					ask = append(ask, "--arg", "address="+matrixSecrets[1][1])
				}
			}
			if q.Whole != "" {
				whole = append(whole, ask)
			} else {
				some = append(some, ask)
			}
		}
	}
	some = append(some, []string{"query", "--list"}, []string{"alerts", "list"}, []string{"alerts", "list", "-o", "json"}, []string{"alerts", "show", "0"}, []string{"alerts", "ack", "0"})
	whole = append(whole,
		[]string{"sql", "SELECT * FROM flows"}, []string{"sql", "SELECT count(*) FROM edges", "-o", "json"}, []string{"status"}, []string{"status", "-o", "json"},
		[]string{"suggest", "-A"}, []string{"suggest", "-n", "readers-a"}, []string{"unused"}, []string{"alerts", "silences"}, []string{"alerts", "test"},
		[]string{"alerts", "silence", "severity=warning", "--for", "1h", "--comment", "x"}, []string{"policy", "lint"}, []string{"policy", "lint", "--at", "1m"})
	return some, whole
}

// TestReadersSeeWhatTheyMay: readers and namespaces against the real API server.
// No cell leaks, through any verb, format, count, sort or error.
func TestReadersSeeWhatTheyMay(t *testing.T) {
	for _, n := range []string{"readers-a", "readers-b", "readers-c"} {
		namespace(t, n)
	}
	accounts := ""
	for reader := range readable {
		accounts += fmt.Sprintf("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: readers-a}\n", reader)
	}
	must(t, lab.Apply(t.Context(), accounts+"---\n"+readerRights))
	files := make(map[string]string)
	for reader := range readable {
		files[reader] = tokenFile(t, token(t, "readers-a", reader, "", "flowaudit-reader"))
	}
	log := filepath.Join(t.TempDir(), "queries")
	p, err := product.Start(t.Context(), lab.Cluster, product.Options{
		Bin: lab.bin, NoAgents: true, Arguments: []string{"--reader-proof", "token", "--query-log", log}, Ask: []string{"--token-file", files["chief"]},
	})
	must(t, err)
	defer func() { must(t, p.Close()) }()
	send(t, p.Server, matrixBatch())
	must(t, p.Until(t.Context(), answerBy, "the flows to be there", func() error {
		flows, err := p.Flows(t.Context())
		if err == nil && len(flows) != 32 {
			err = fmt.Errorf("%d flows", len(flows))
		}
		return err
	}))
	some, whole := matrixQuestions(t)
	for reader, namespaces := range readable {
		t.Run(reader, func(t *testing.T) {
			for _, args := range some {
				said, code := asked(t, p, files[reader], args)
				if refused := strings.Contains(said, "may read no flows"); refused != (reader == "nobody" && args[len(args)-1] != "--list") || refused && code == 0 {
					t.Errorf("%s: exit code %d, %s", args, code, said)
				}
				if code == 2 && args[0] != "alerts" {
					t.Errorf("%s: exit code 2, %s", args, said)
				}
				leaks(t, namespaces, args, said)
			}
			for _, args := range whole {
				said, code := asked(t, p, files[reader], args)
				refused := strings.Contains(said, "readers of the whole cluster") || reader == "nobody" && strings.Contains(said, "may read no flows")
				if writes := args[0] == "alerts" && args[1] == "silence"; refused == (reader == "chief") || refused && code == 0 || writes && code == 0 {
					t.Errorf("%s: exit code %d, %s", args, code, said)
				}
				leaks(t, namespaces, args, said)
			}
			counts(t, p, files[reader], namespaces)
		})
	}
	t.Run("tokens", func(t *testing.T) { readerTokens(t, p) })
	t.Run("a right that is gone", func(t *testing.T) { rightGone(t, p, files["developer"], log) })
	t.Run("the log of queries", func(t *testing.T) { queryLog(t, log, files) })
}

func tokenFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte(text+"\n"), 0o600))
	return file
}

// send reports a batch as an agent does.
func send(t *testing.T, server string, b flow.Batch) {
	t.Helper()
	conn, err := dial.Options{Address: server}.Conn()
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), answerBy)
	defer cancel()
	stream, err := flowauditv1.NewIngestClient(conn).Report(ctx)
	must(t, err)
	must(t, stream.Send(flowauditv1.FromBatch(&b)))
	ack, err := stream.Recv()
	must(t, err)
	if ack.GetRejected() > 0 || ack.GetError() != "" {
		t.Fatal(ack)
	}
}

// asked is all that flowaudit says to a reader, and its exit code.
func asked(t *testing.T, p *product.Product, file string, args []string) (said string, code int) {
	t.Helper()
	cmd := p.Command(t.Context(), append(args, "--token-file", file)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// leaks fails where what is said tells of a namespace's pods that the reader
// may not read.
func leaks(t *testing.T, namespaces string, args []string, said string) {
	t.Helper()
	for i, n := range "abc" {
		if strings.ContainsRune(namespaces, n) {
			continue
		}
		for _, secret := range append(matrixSecrets[i][:], fmt.Sprintf("abc%d", i), fmt.Sprintf("10.202.0.%d", i+1)) {
			if strings.Contains(said, secret) && !strings.Contains(strings.Join(args, " "), secret) {
				t.Errorf("%s tells %q of readers-%c: %s", args, secret, n, said)
			}
		}
	}
}

// counts compares how many flows a reader gets with how many they may read, and
// looks for what is withheld by every filter that there is.
func counts(t *testing.T, p *product.Product, file, namespaces string) {
	t.Helper()
	if namespaces == "" {
		return
	}
	count := func(args ...string) int {
		said, code := asked(t, p, file, append([]string{"observe", "--all", "-o", "json"}, args...))
		if code != 0 {
			t.Fatalf("%s: exit code %d, %s", args, code, said)
		}
		return strings.Count(said, `"verdict":`)
	}
	want := 32
	if namespaces != "abc" { // 4 ends, of which some are not readable
		closed := 4 - len(namespaces)
		want = 2 * (16 - closed*closed)
	}
	if got := count(); got != want {
		t.Errorf("%d flows, want %d", got, want)
	}
	for i, n := range "abc" {
		found := 0
		if strings.ContainsRune(namespaces, n) {
			found = 8
		}
		_, e := matrixEnd(i)
		for _, filter := range [][]string{
			{"--to-pod", e.Namespace + "/" + e.Pod},
			{"--to-pod", e.Pod[:3]},
			{"--to-workload", e.Namespace + "/" + e.Workload.Name},
			{"--to-label", "app=" + e.Labels["app"]},
			{"--to-ip", matrixSecrets[i][1]},
			{"--to-ip", matrixSecrets[i][1][:len(matrixSecrets[i][1])-1] + "0/24"},
		} {
			if got := count(filter...); got != found {
				t.Errorf("%s finds %d flows, want %d", filter, got, found)
			}
			if found == 0 {
				if got := count(append([]string{"--not"}, filter...)...); got != want {
					t.Errorf("--not %s leaves %d flows, want all %d", filter, got, want)
				}
			}
		}
	}
}

// readerTokens: of the audience, of the API server, and of nobody.
func readerTokens(t *testing.T, p *product.Product) {
	chief := token(t, "readers-a", "chief", "", "flowaudit-reader")
	for name, c := range map[string]struct {
		token string
		code  codes.Code
	}{
		"for the audience":      {chief, codes.OK},
		"for the API server":    {token(t, "readers-a", "chief", "", ""), codes.OK},
		"for somebody else":     {token(t, "readers-a", "chief", "", "vault"), codes.Unauthenticated},
		"changed":               {chief[:len(chief)-4] + "AAAA", codes.Unauthenticated},
		"none":                  {"", codes.Unauthenticated},
		"of an agent's account": {token(t, "flowaudit", "flowaudit-agent", "", "flowaudit-reader"), codes.PermissionDenied},
	} {
		o := dial.Options{Address: p.Server}
		if c.token != "" {
			o.TokenFile = tokenFile(t, c.token)
		}
		if err := readStatus(t, o); status.Code(err) != c.code || c.token != "" && err != nil && strings.Contains(err.Error(), c.token) {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
}

func readStatus(t *testing.T, o dial.Options) error {
	t.Helper()
	conn, err := o.Conn()
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), answerBy)
	defer cancel()
	_, err = flowauditv1.NewQueryClient(conn).Status(ctx, &flowauditv1.StatusRequest{}, grpc.WaitForReady(true))
	return err
}

// rightGone: whoever follows is cut off when the binding is deleted.
func rightGone(t *testing.T, p *product.Product, file, log string) {
	follow := p.Command(t.Context(), "observe", "-f", "--token-file", file)
	var out bytes.Buffer
	follow.Stdout, follow.Stderr = &out, &out
	must(t, follow.Start())
	ended := make(chan error, 1)
	go func() { ended <- follow.Wait() }()
	must(t, p.Until(t.Context(), answerBy, "the follower to be let in", func() error {
		text, err := os.ReadFile(log)
		if err == nil && !bytes.Contains(text, []byte(`"msg":"follow begins"`)) {
			err = errors.New("it is not")
		}
		return err
	}))
	must(t, lab.Client.RbacV1().RoleBindings("readers-a").Delete(t.Context(), "flows", metav1.DeleteOptions{}))
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(out.String(), "may read no flows") {
			t.Errorf("the follower ended with %v: %s", err, out.String())
		}
	case <-time.After(answerBy):
		t.Error("who follows is not cut off")
		must(t, follow.Process.Kill())
		<-ended
	}
}

// queryLog holds who asked, and no token.
func queryLog(t *testing.T, file string, tokens map[string]string) {
	text, err := os.ReadFile(file)
	must(t, err)
	for _, want := range []string{
		`"reader":"system:serviceaccount:readers-a:developer"`, `"decision":"everything"`, `"decision":"namespaces","namespaces":["readers-a"]`, `"decision":"nothing"`,
		`"decision":"unknown reader"`, `"query":"SELECT * FROM flows"`, `"code":"PermissionDenied"`, `"msg":"follow begins"`,
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the log of queries has no %s", want)
		}
	}
	for reader, f := range tokens {
		secret, err := os.ReadFile(f)
		must(t, err)
		if bytes.Contains(text, bytes.TrimSpace(secret)) {
			t.Errorf("the log of queries holds the token of %s", reader)
		}
	}
}
