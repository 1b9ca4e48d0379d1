package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// authority signs the certificates of one cluster.
type authority struct {
	dir  string // where certificates and keys lie
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const (
	caFile      = "ca.crt"
	accountsKey = "accounts.key" // signs the tokens of service accounts
	accountsPub = "accounts.pub"
)

func newAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	template := a.template(pkix.Name{CommonName: "flowaudit-test"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	if err := a.write(caFile, "CERTIFICATE", der); err != nil {
		return nil, err
	}
	return a, a.accounts()
}

// accounts makes the keys that sign and prove service accounts' tokens.
func (a *authority) accounts() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("write a key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("write a key: %w", err)
	}
	return errors.Join(a.write(accountsKey, "EC PRIVATE KEY", private), a.write(accountsPub, "PUBLIC KEY", public))
}

func (a *authority) template(subject pkix.Name) *x509.Certificate {
	serial := new(big.Int).SetInt64(time.Now().UnixNano())
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		// Clocks of one machine do not differ, but certificates have whole seconds.
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(7 * 24 * time.Hour),
	}
}

// issue writes NAME.crt and NAME.key.
func (a *authority) issue(name string, subject pkix.Name, addrs ...netip.Addr) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	template := a.template(subject)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, addr := range addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("make a certificate for %s: %w", name, err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("write a key: %w", err)
	}
	return errors.Join(a.write(name+".crt", "CERTIFICATE", der), a.write(name+".key", "EC PRIVATE KEY", private))
}

func (a *authority) write(name, kind string, der []byte) error {
	b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(a.path(name), b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// user writes NAME.kubeconfig for a user with a certificate of its own.
func (a *authority) user(name string, subject pkix.Name) (string, error) {
	if err := a.issue(name, subject); err != nil {
		return "", err
	}
	return a.kubeconfig(name, &api.AuthInfo{ClientCertificate: a.path(name + ".crt"), ClientKey: a.path(name + ".key")})
}

// kubeconfig writes NAME.kubeconfig.
func (a *authority) kubeconfig(name string, who *api.AuthInfo) (string, error) {
	const context = "flowaudit-test"
	path := a.path(name + ".kubeconfig")
	err := clientcmd.WriteToFile(api.Config{
		Clusters:       map[string]*api.Cluster{context: {Server: apiURL, CertificateAuthority: a.path(caFile)}},
		AuthInfos:      map[string]*api.AuthInfo{name: who},
		Contexts:       map[string]*api.Context{context: {Cluster: context, AuthInfo: name}},
		CurrentContext: context,
	}, path)
	if err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return path, nil
}
