// Package access says who reads, what they may read, and keeps a log of what they asked.
package access

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// Reader is who asks.
type Reader struct {
	Name   string // as Kubernetes names users
	UID    string
	Groups []string
	Extra  map[string][]string
	Proof  string // certificate, token or oidc; none where nothing was asked for
}

// key tells readers apart, by all that their rights depend on.
type key [sha256.Size]byte

func (r *Reader) key() key {
	h := sha256.New()
	write := func(texts ...string) {
		_ = binary.Write(h, binary.BigEndian, int64(len(texts))) // a hash takes everything
		for _, t := range texts {
			_ = binary.Write(h, binary.BigEndian, int64(len(t)))
			h.Write([]byte(t))
		}
	}
	write(r.Name, r.UID)
	write(r.Groups...)
	for _, k := range slices.Sorted(maps.Keys(r.Extra)) {
		write(k)
		write(r.Extra[k]...)
	}
	return key(h.Sum(nil))
}

// Prover proves who calls, by what a call shows.
type Prover interface {
	// Prove is errNothingShown where the call shows nothing of the prover's
	// kind, and ErrUnavailable where nobody could say.
	Prove(ctx context.Context) (Reader, error)
}

var (
	// ErrUnavailable says that who asks, or what they may, cannot be found out now.
	ErrUnavailable  = errors.New("the API server or the issuer of tokens cannot be asked")
	errNothingShown = errors.New("nothing is shown")
)

const bearer = "Bearer "

// tokenOf is the token that a call shows; empty if it shows none.
func tokenOf(ctx context.Context) string {
	for _, v := range metadata.ValueFromIncomingContext(ctx, "authorization") {
		if len(v) > len(bearer) && strings.EqualFold(v[:len(bearer)], bearer) {
			return strings.TrimSpace(v[len(bearer):])
		}
	}
	return ""
}

// CertificateOf is the caller's certificate if it was verified, else nil.
func CertificateOf(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

// Certificates proves readers by the certificates that TLS has verified: the
// common name is the user, the organizations are the groups, as Kubernetes has it.
type Certificates struct{}

// Prove implements Prover.
func (Certificates) Prove(ctx context.Context) (Reader, error) {
	c := CertificateOf(ctx)
	switch {
	case c == nil:
		return Reader{}, errNothingShown
	case c.Subject.CommonName == "":
		return Reader{}, errors.New("the certificate has no common name, which is the user's")
	}
	groups := append(slices.Clone(c.Subject.Organization), groupAuthenticated)
	return Reader{Name: c.Subject.CommonName, Groups: groups, Proof: "certificate"}, nil
}

// groupAuthenticated is Kubernetes' group of everybody who is known.
const groupAuthenticated = "system:authenticated"
