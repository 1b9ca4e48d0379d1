package kube

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// tokenOfAccount is a token that says that it is a ServiceAccount's; nobody verifies it here.
func tokenOfAccount(subject string) string {
	return "h." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"`+subject+`"}`)) + ".s"
}

// accessOf is a kubeconfig of one user at a server.
func accessOf(t *testing.T, server *httptest.Server, user *api.AuthInfo) Access {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	config := api.Config{
		Clusters: map[string]*api.Cluster{"c": {Server: server.URL, CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})}}, AuthInfos: map[string]*api.AuthInfo{"u": user},
		Contexts: map[string]*api.Context{"x": {Cluster: "c", AuthInfo: "u"}}, CurrentContext: "x",
	}
	if err := clientcmd.WriteToFile(config, file); err != nil {
		t.Fatal(err)
	}
	return Access{Kubeconfig: file}
}

// TestTheTokenIsForTheAudienceWherePossible: a ServiceAccount requests one, and
// everybody else shows what the API server is shown.
func TestTheTokenIsForTheAudienceWherePossible(t *testing.T) {
	var asked []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req authenticationv1.TokenRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		asked = append(asked, r.Method+" "+r.URL.Path+" "+strings.Join(req.Spec.Audiences, ","))
		w.Header().Set("Content-Type", "application/json")
		if strings.Contains(r.URL.Path, "/refused/") {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
			return
		}
		req.Status.Token = "bound"
		_ = json.NewEncoder(w).Encode(req)
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("in-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	robot, refused := tokenOfAccount("system:serviceaccount:shop:robot"), tokenOfAccount("system:serviceaccount:shop:refused")
	for name, c := range map[string]struct {
		user    *api.AuthInfo
		account string
		want    string
		err     string
		asked   string
	}{
		"a person's":                  {&api.AuthInfo{Token: "opaque"}, "", "opaque", "", ""},
		"a person's of OIDC":          {&api.AuthInfo{Token: tokenOfAccount("alice")}, "", tokenOfAccount("alice"), "", ""},
		"in a file":                   {&api.AuthInfo{TokenFile: file}, "", "in-a-file", "", ""},
		"of a plugin":                 {&api.AuthInfo{Exec: plugin(t)}, "", "of-the-plugin", "", ""},
		"none":                        {&api.AuthInfo{}, "", "", "", ""},
		"a password":                  {&api.AuthInfo{Username: "u", Password: "p"}, "", "", "", ""},
		"a ServiceAccount's":          {&api.AuthInfo{Token: robot}, "", "bound", "", "POST /api/v1/namespaces/shop/serviceaccounts/robot/token us"},
		"one that may request none":   {&api.AuthInfo{Token: refused}, "", refused, "", "POST /api/v1/namespaces/shop/serviceaccounts/refused/token us"},
		"of another account":          {&api.AuthInfo{}, "ops/reader", "bound", "", "POST /api/v1/namespaces/ops/serviceaccounts/reader/token us"},
		"of another, that is refused": {&api.AuthInfo{}, "ops/refused", "", "ServiceAccount ops/refused", "POST /api/v1/namespaces/ops/serviceaccounts/refused/token us"},
		"of what is no account":       {&api.AuthInfo{}, "reader", "", "want namespace/name", ""},
	} {
		asked = nil
		a := accessOf(t, server, c.user)
		got, err := a.Token(t.Context(), TokenOptions{Audience: "us", Account: c.account})
		if got != c.want || c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %q, %v; want %q, %q", name, got, err, c.want, c.err)
		}
		if strings.Join(asked, ";") != c.asked {
			t.Errorf("%s: asked %v, want %q", name, asked, c.asked)
		}
	}
}

// plugin is one of a kubeconfig, which gives a token.
func plugin(t *testing.T) *api.ExecConfig {
	t.Helper()
	return &api.ExecConfig{
		APIVersion: "client.authentication.k8s.io/v1", Command: "echo", InteractiveMode: api.NeverExecInteractiveMode,
		Args: []string{`{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"of-the-plugin"}}`},
	}
}

func TestCertificateOfAKubeconfig(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	none := accessOf(t, server, &api.AuthInfo{Token: "t"})
	if c, err := none.Certificate(); c != nil || err != nil {
		t.Errorf("without one: %v, %v", c, err)
	}
	wrong := accessOf(t, server, &api.AuthInfo{ClientCertificateData: []byte("c"), ClientKeyData: []byte("k")})
	if _, err := wrong.Certificate(); err == nil {
		t.Error("what is none is taken")
	}
}
