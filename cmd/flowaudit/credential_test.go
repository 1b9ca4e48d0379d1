package main

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// TestRefusals: what the collector says of who asks leads to what to do.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{status.Error(codes.Unauthenticated, "show who asks, by a Kubernetes token"), "does not know who asks: show who asks, by a Kubernetes token\n"},
		{status.Error(codes.Unauthenticated, "transport: per-RPC creds failed due to error: read token: open x"), "does not know who asks: read token: open x\n"},
		{status.Error(codes.PermissionDenied, "alice may read no flows"), "refuses: alice may read no flows\n"},
	} {
		for _, args := range []string{"status", "observe", "query nodes", "sql SELECT"} {
			r := flowaudit(t, &collector{err: c.err}, nil, strings.Fields(args)...)
			if r.code != exitError || !strings.Contains(r.stderr, c.want) || r.stdout != "" {
				t.Errorf("%s: %+v, want %q", args, r, c.want)
			}
		}
	}
}

// TestWhatShows: what kubectl would show to the API server, and why there is nothing.
func TestWhatShows(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	file := filepath.Join(t.TempDir(), "config")
	config := api.Config{
		Clusters:  map[string]*api.Cluster{"c": {Server: server.URL, CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})}},
		AuthInfos: map[string]*api.AuthInfo{"person": {Token: "secret"}, "nobody": {}},
		Contexts:  map[string]*api.Context{"one": {Cluster: "c", AuthInfo: "person"}, "two": {Cluster: "c", AuthInfo: "nobody"}}, CurrentContext: "one",
	}
	if err := clientcmd.WriteToFile(config, file); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file, context, account string
		want                   string
		explained              string // of why there is nothing
		err                    string
	}{
		"the current context's":                    {file, "", "", "secret", "", ""},
		"another context's":                        {file, "two", "", "", `context "two" of ` + file + " has no token", ""},
		"no such context":                          {file, "three", "", "", `it has no context "three"`, ""},
		"no kubeconfig":                            {"", "", "", "", "there is no kubeconfig", ""},
		"an account that the server does not know": {file, "", "ops/reader", "", "", "ServiceAccount ops/reader"},
	} {
		asks := credential{context: c.context, account: c.account, getenv: func(key string) string { return map[string]string{"KUBECONFIG": c.file}[key] }}
		got, err := asks.token(t.Context())
		if got != c.want || c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if said := asks.explain("unknown"); !strings.Contains(said, c.explained) || c.explained == "" && said != "unknown" {
			t.Errorf("%s: %q, want %q", name, said, c.explained)
		}
		if pair, err := asks.certificate(); pair != nil || err != nil {
			t.Errorf("%s: certificate %v, %v", name, pair, err)
		}
	}
}
