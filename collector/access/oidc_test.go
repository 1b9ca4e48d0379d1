package access

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// issuer signs tokens.
type issuer struct {
	*httptest.Server
	key *rsa.PrivateKey
	ca  string
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key, ca: filepath.Join(t.TempDir(), "ca.pem")}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "authorization_endpoint": i.URL, "token_endpoint": i.URL, "id_token_signing_alg_values_supported": []string{"RS256"}}
		if r.URL.Path == "/keys" {
			answer = map[string]any{"keys": []any{map[string]any{
				"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "k", "n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes()),
			}}}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(i.Close)
	if err := os.WriteFile(i.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func sign(t *testing.T, key *rsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	text := encode([]byte(`{"alg":"RS256","kid":"k"}`)) + "." + encode(payload)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + encode(signature)
}

func TestOIDC(t *testing.T) {
	i := newIssuer(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	claims := func(change map[string]any) map[string]any {
		out := map[string]any{"iss": i.URL, "aud": "flowaudit", "sub": "7", "email": "alice@example", "groups": []string{"ops", "system:masters"}, "exp": time.Now().Add(time.Hour).Unix()}
		for k, v := range change {
			out[k] = v
		}
		return out
	}
	options := OIDCOptions{Issuer: i.URL, ClientID: "flowaudit", UsernameClaim: "email", GroupsClaim: "groups", Prefix: "oidc:", CA: i.ca}
	bare := options
	bare.Prefix = ""
	for name, c := range map[string]struct {
		options OIDCOptions
		token   string
		want    string // user and groups
		err     error  // nil with want empty is any
	}{
		"well":               {options, sign(t, i.key, claims(nil)), "oidc:alice@example system:authenticated oidc:ops oidc:system:masters", nil},
		"one group":          {options, sign(t, i.key, claims(map[string]any{"groups": "dev"})), "oidc:alice@example system:authenticated oidc:dev", nil},
		"no prefix":          {bare, sign(t, i.key, claims(nil)), "alice@example system:authenticated ops", nil},
		"a user's own name":  {bare, sign(t, i.key, claims(map[string]any{"email": "system:admin"})), "", nil},
		"another key":        {options, sign(t, other, claims(nil)), "", errNotValid},
		"another client":     {options, sign(t, i.key, claims(map[string]any{"aud": "x"})), "", errNotValid},
		"expired":            {options, sign(t, i.key, claims(map[string]any{"exp": time.Now().Add(-time.Minute).Unix()})), "", errNotValid},
		"another issuer":     {options, sign(t, i.key, claims(map[string]any{"iss": "https://x"})), "", errNothingShown},
		"no name":            {options, sign(t, i.key, claims(map[string]any{"email": ""})), "", nil},
		"email not verified": {options, sign(t, i.key, claims(map[string]any{"email_verified": false})), "", nil},
		"no token of OIDC":   {options, "opaque", "", errNothingShown},
	} {
		p, err := NewOIDC(c.options)
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Prove(shows(t.Context(), "Bearer "+c.token))
		got := strings.TrimSpace(strings.Join(append([]string{r.Name}, r.Groups...), " "))
		if got != c.want || (err == nil) != (c.want != "") || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err != nil && slices.ContainsFunc(strings.Split(c.token, "."), func(part string) bool { return strings.Contains(err.Error(), part) }) {
			t.Errorf("%s: the error tells the token: %v", name, err)
		}
	}
	i.Close()
	p, err := NewOIDC(options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Prove(shows(t.Context(), "Bearer "+sign(t, i.key, claims(nil)))); !errors.Is(err, ErrUnavailable) {
		t.Errorf("the issuer is away: %v", err)
	}
}

func TestOIDCOptions(t *testing.T) {
	good := OIDCOptions{Issuer: "https://i", ClientID: "c", UsernameClaim: "sub"}
	for want, change := range map[string]func(*OIDCOptions){
		"":                       func(*OIDCOptions) {},
		"needs --oidc-issuer":    func(o *OIDCOptions) { o.Issuer = "" },
		"want an https URL":      func(o *OIDCOptions) { o.Issuer = "http://i" },
		"needs --oidc-client-id": func(o *OIDCOptions) { o.ClientID = "" },
		"--oidc-username-claim":  func(o *OIDCOptions) { o.UsernameClaim = "" },
	} {
		o := good
		change(&o)
		if err := o.Validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
	if _, err := NewOIDC(OIDCOptions{CA: "none.pem"}); err == nil || !strings.Contains(err.Error(), "--oidc-ca") {
		t.Errorf("no authorities: %v", err)
	}
}
