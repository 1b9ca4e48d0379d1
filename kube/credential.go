package kube

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// TokenOptions say which token shows to somebody else who asks.
type TokenOptions struct {
	UserAgent string
	Audience  string // whom the token is to be shown to
	// Account is a ServiceAccount, namespace/name, whose token it is; empty for
	// whoever the access is of.
	Account string
}

// tokenSeconds is how long a requested token is good; the API server takes no less.
const tokenSeconds = 600

// Token is a token of whoever the access is of; empty if they have none, as
// with a certificate. It is for the audience where the API server gives one for
// it: to a ServiceAccount that may request its own. Else it is the one that the
// API server itself is shown.
func (a *Access) Token(ctx context.Context, o TokenOptions) (string, error) {
	config, err := a.Config(o.UserAgent)
	if err != nil {
		return "", err
	}
	if o.Account != "" {
		namespace, name, ok := strings.Cut(o.Account, "/")
		if !ok || namespace == "" || name == "" {
			return "", fmt.Errorf("%q is no ServiceAccount: want namespace/name", o.Account)
		}
		return requestToken(ctx, config, namespace, name, o.Audience)
	}
	own, err := ownToken(ctx, config)
	if err != nil || own == "" {
		return own, err
	}
	namespace, name := accountOf(own)
	if name == "" {
		return own, nil
	}
	bound, err := requestToken(ctx, config, namespace, name, o.Audience)
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		return own, nil
	}
	return bound, err
}

// requestToken asks for a token that is for an audience only.
func requestToken(ctx context.Context, config *rest.Config, namespace, name, audience string) (string, error) {
	s, err := newServer(config)
	if err != nil {
		return "", err
	}
	client, err := s.restClient(schema.GroupVersion{Version: "v1"})
	if err != nil {
		return "", err
	}
	seconds := int64(tokenSeconds)
	body, err := json.Marshal(authenticationv1.TokenRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
		Spec:     authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds},
	})
	if err != nil {
		return "", err
	}
	answer, err := client.Post().Namespace(namespace).Resource("serviceaccounts").Name(name).SubResource("token").
		SetHeader("Content-Type", "application/json").SetHeader("Accept", "application/json").Body(body).Do(ctx).Raw()
	if err != nil {
		return "", fmt.Errorf("request a token of ServiceAccount %s/%s: %w", namespace, name, err)
	}
	var given authenticationv1.TokenRequest
	if err := json.Unmarshal(answer, &given); err != nil || given.Status.Token == "" {
		return "", fmt.Errorf("request a token of ServiceAccount %s/%s: the API server gave none", namespace, name)
	}
	return given.Status.Token, nil
}

// ownToken is the token that the API server is shown: of the kubeconfig, of its
// plugin, or of the pod's ServiceAccount.
func ownToken(ctx context.Context, config *rest.Config) (string, error) {
	var header string
	shown, err := rest.HTTPWrappersForConfig(config, roundTripper(func(r *http.Request) (*http.Response, error) {
		header = r.Header.Get("Authorization")
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
	}))
	if err != nil {
		return "", fmt.Errorf("read credentials: %w", err)
	}
	// It goes nowhere: what would be sent is looked at.
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://kubernetes.invalid/", http.NoBody)
	if err != nil {
		return "", err
	}
	answer, err := shown.RoundTrip(r)
	if err != nil {
		return "", fmt.Errorf("read credentials: %w", err)
	}
	_ = answer.Body.Close() // it is none
	token, _ := strings.CutPrefix(header, "Bearer ")
	if token == header {
		return "", nil
	}
	return token, nil
}

// accountOf reads from a token of a ServiceAccount whose it is; empty for
// others. Nothing is verified by it.
func accountOf(token string) (namespace, name string) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", ""
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return "", ""
	}
	account, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	namespace, name, whole := strings.Cut(account, ":")
	if !ok || !whole {
		return "", ""
	}
	return namespace, name
}

// Certificate is the certificate that the API server is shown; nil if it is
// shown none.
func (a *Access) Certificate() (*tls.Certificate, error) {
	config, err := a.load()
	if err != nil {
		return nil, err
	}
	cert, key := config.CertData, config.KeyData
	for _, f := range []struct {
		data *[]byte
		file string
	}{{&cert, config.CertFile}, {&key, config.KeyFile}} {
		if len(*f.data) > 0 || f.file == "" {
			continue
		}
		if *f.data, err = os.ReadFile(f.file); err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
	}
	if len(cert) == 0 {
		transport, err := config.TransportConfig()
		if err != nil || transport.TLS.GetCertHolder == nil {
			return nil, err
		}
		return transport.TLS.GetCertHolder.GetCert()
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, errors.New("read certificate: the kubeconfig's certificate and key do not fit")
	}
	return &pair, nil
}
