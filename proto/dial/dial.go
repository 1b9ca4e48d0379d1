// Package dial opens the connection from an agent or an asker to a collector.
package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// Options say where the collector is and how to be sure of it.
type Options struct {
	Address    string // host:port, or unix:PATH
	TLS        bool   // with the system's certificate authorities, unless CA is given
	CA         string // PEM file of the authorities that sign collectors' certificates
	Cert, Key  string // PEM files of an own certificate, for mutual TLS
	ServerName string // the name in the collector's certificate, if it is not the address's host
	// TokenFile holds a bearer token, which is read for each call: a projected
	// ServiceAccount token changes. It is not sent in the clear, but to a unix
	// socket or loopback.
	TokenFile string
	// Token, if set, gives a bearer token where there is no TokenFile; empty is
	// none. It is sent over TLS only, and asked for once.
	Token func(ctx context.Context) (string, error)
	// ClientCertificate, if set, gives a certificate where there is no Cert, in
	// case that the collector knows who signed it; nil is none.
	ClientCertificate func() (*tls.Certificate, error)
}

// Flags adds the TLS options to a flag set.
func (o *Options) Flags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.TLS, "tls", o.TLS, "connect with TLS")
	fs.StringVar(&o.CA, "tls-ca", o.CA, "PEM `file` of the authorities that sign the collector's certificate (default: the system's)")
	fs.StringVar(&o.Cert, "tls-cert", o.Cert, "PEM `file` of this side's certificate, for mutual TLS")
	fs.StringVar(&o.Key, "tls-key", o.Key, "PEM `file` of this side's private key, for mutual TLS")
	fs.StringVar(&o.ServerName, "tls-server-name", o.ServerName, "`name` in the collector's certificate, if it is not the address's host")
}

// TokenFlag adds the option for those that prove by a token who they are.
func (o *Options) TokenFlag(fs *pflag.FlagSet) {
	fs.StringVar(&o.TokenFile, "token-file", o.TokenFile, "`file` with the token that proves to the collector who this is, such as a projected ServiceAccount token; read for each call")
}

// Conn prepares a connection. It is made when first used, and certificates are
// read again for each that is made.
func (o Options) Conn() (*grpc.ClientConn, error) {
	creds, err := o.credentials()
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	}
	if o.TokenFile != "" {
		if !o.secure() && !o.local() {
			return nil, fmt.Errorf("--token-file needs TLS: in the clear anybody on the way to %s could take the token", o.Address)
		}
		options = append(options, grpc.WithPerRPCCredentials(token{file: o.TokenFile, secure: o.secure()}))
	} else if o.Token != nil && o.secure() {
		options = append(options, grpc.WithPerRPCCredentials(&givenToken{give: o.Token}))
	}
	conn, err := grpc.NewClient(o.Address, options...)
	if err != nil {
		return nil, fmt.Errorf("prepare connection to %s: %w", o.Address, err)
	}
	return conn, nil
}

// secure reports whether TLS is on.
func (o Options) secure() bool {
	return o.TLS || o.CA != "" || o.Cert != "" || o.Key != "" || o.ServerName != ""
}

// local reports whether the collector is on this machine.
func (o Options) local() bool {
	if strings.HasPrefix(o.Address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(o.Address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (o Options) credentials() (credentials.TransportCredentials, error) {
	if !o.secure() {
		return insecure.NewCredentials(), nil
	}
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	return fresh{credentials.NewTLS(config), o}, nil
}

// fresh are credentials whose files are read for each connection that is made:
// certificates are renewed while connections last.
type fresh struct {
	credentials.TransportCredentials
	options Options
}

func (f fresh) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := f.options.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
}

func (f fresh) Clone() credentials.TransportCredentials {
	return fresh{f.TransportCredentials.Clone(), f.options}
}

// token is a bearer token in a file.
type token struct {
	file   string
	secure bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := os.ReadFile(t.file)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	trimmed := strings.TrimSpace(string(text))
	if trimmed == "" {
		return nil, fmt.Errorf("read token: %s is empty", t.file)
	}
	return map[string]string{"authorization": "Bearer " + trimmed}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t token) RequireTransportSecurity() bool { return t.secure }

// givenToken is a bearer token that somebody gives.
type givenToken struct {
	give func(context.Context) (string, error)
	once sync.Once
	text string
	err  error
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t *givenToken) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	t.once.Do(func() { t.text, t.err = t.give(ctx) })
	if t.err != nil || t.text == "" {
		return nil, t.err
	}
	return map[string]string{"authorization": "Bearer " + t.text}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*givenToken) RequireTransportSecurity() bool { return true }

// offer gives a certificate where the collector takes it.
func offer(give func() (*tls.Certificate, error)) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c, err := give()
		if err != nil || c == nil || asked.SupportsCertificate(c) != nil {
			return &tls.Certificate{}, err
		}
		return c, nil
	}
}

// config reads the certificates.
func (o Options) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: o.ServerName}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("read certificate authorities: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read certificate authorities: no certificate in %s", o.CA)
		}
	}
	if (o.Cert == "") != (o.Key == "") {
		return nil, errors.New("--tls-cert and --tls-key belong together: give both or none")
	}
	if o.Cert != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	} else if o.ClientCertificate != nil {
		config.GetClientCertificate = offer(o.ClientCertificate)
	}
	return config, nil
}
