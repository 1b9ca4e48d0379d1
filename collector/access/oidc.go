package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// OIDCOptions name an issuer whose ID tokens are believed.
type OIDCOptions struct {
	Issuer        string // URL; empty for none
	ClientID      string // that tokens must be for
	UsernameClaim string
	GroupsClaim   string
	// Prefix begins the names of users and groups, so that none is taken for one of Kubernetes.
	Prefix string
	CA     string // PEM file of the authorities of the issuer's certificate; the system's if empty
}

// Validate names what cannot work.
func (o *OIDCOptions) Validate() error {
	u, err := url.Parse(o.Issuer)
	switch {
	case o.Issuer == "":
		return errors.New("--reader-proof oidc needs --oidc-issuer")
	case err != nil || u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("--oidc-issuer %q: want an https URL", o.Issuer)
	case o.ClientID == "":
		return errors.New("--oidc-issuer needs --oidc-client-id, which tokens must be for")
	case o.UsernameClaim == "":
		return errors.New("--oidc-username-claim: want the name of a claim, such as sub or email")
	}
	return nil
}

// OIDC proves readers by an issuer's ID tokens.
type OIDC struct {
	o      OIDCOptions
	client *http.Client

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier // nil until the issuer has answered
}

// oidcTimeout bounds what the issuer is asked.
const oidcTimeout = 10 * time.Second

// NewOIDC prepares to verify tokens. The issuer is asked for its keys when the
// first token comes.
func NewOIDC(o OIDCOptions) (*OIDC, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("read --oidc-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read --oidc-ca: no certificate in %s", o.CA)
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = config
	return &OIDC{o: o, client: &http.Client{Transport: transport, Timeout: oidcTimeout}}, nil
}

// Prove implements Prover. A token of another issuer is somebody else's to prove.
func (p *OIDC) Prove(ctx context.Context) (Reader, error) {
	token := tokenOf(ctx)
	if token == "" || issuerOf(token) != p.o.Issuer {
		return Reader{}, errNothingShown
	}
	verifier, err := p.ready(ctx)
	if err != nil {
		return Reader{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	verified, err := verifier.Verify(oidc.ClientContext(ctx, p.client), token)
	if err != nil {
		return Reader{}, errNotValid // why not may tell of the token
	}
	var claims map[string]any
	if err := verified.Claims(&claims); err != nil {
		return Reader{}, errNotValid
	}
	return p.reader(claims)
}

func (p *OIDC) ready(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verifier == nil {
		// The keys are asked for again long after this call is over.
		provider, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), p.client), p.o.Issuer)
		if err != nil {
			return nil, err
		}
		p.verifier = provider.Verifier(&oidc.Config{ClientID: p.o.ClientID})
	}
	return p.verifier, nil
}

// reader reads the claims of a token that was verified.
func (p *OIDC) reader(claims map[string]any) (Reader, error) {
	name, _ := claims[p.o.UsernameClaim].(string)
	if name == "" {
		return Reader{}, fmt.Errorf("the token has no claim %s, which is the user's name", p.o.UsernameClaim)
	}
	if verified, told := claims["email_verified"].(bool); p.o.UsernameClaim == "email" && told && !verified {
		return Reader{}, errors.New("the token's email is not verified")
	}
	r := Reader{Name: p.o.Prefix + name, Groups: []string{groupAuthenticated}, Proof: "oidc"}
	switch groups := claims[p.o.GroupsClaim].(type) {
	case string:
		r.Groups = append(r.Groups, p.o.Prefix+groups)
	case []any:
		for _, g := range groups {
			if text, ok := g.(string); ok {
				r.Groups = append(r.Groups, p.o.Prefix+text)
			}
		}
	}
	// These are Kubernetes' own, whatever an issuer says.
	if strings.HasPrefix(r.Name, "system:") {
		return Reader{}, errors.New("the token names one of Kubernetes' own users")
	}
	kept := r.Groups[:1]
	for _, g := range r.Groups[1:] {
		if !strings.HasPrefix(g, "system:") {
			kept = append(kept, g)
		}
	}
	r.Groups = kept
	return r, nil
}

// issuerOf is whose a token says that it is; empty for what is no JWT. Nothing
// is verified by it.
func issuerOf(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return ""
	}
	return claims.Issuer
}
