package clickhouse

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Credentials are what a URL should not hold, or cannot.
type Credentials struct {
	Password string // empty takes the URL's
	// CA is a PEM file of the authorities that sign the server's certificate;
	// empty takes the system's. Cert and Key are PEM files of an own one.
	CA, Cert, Key string
	ServerName    string // in the server's certificate, if it is not the URL's host
}

// wantTLS reports whether they make sense with TLS only.
func (c *Credentials) wantTLS() bool {
	return c.CA != "" || c.Cert != "" || c.Key != "" || c.ServerName != ""
}

// add adds the credentials to what a URL says.
func (c *Credentials) add(o *clickhouse.Options) error {
	if c.Password != "" {
		o.Auth.Password = c.Password
	}
	if o.TLS == nil && !c.wantTLS() {
		return nil
	}
	if o.TLS == nil {
		o.TLS = &tls.Config{}
	}
	o.TLS.MinVersion, o.TLS.ServerName = tls.VersionTLS12, c.ServerName
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return fmt.Errorf("open store: read certificate authorities: %w", err)
		}
		o.TLS.RootCAs = x509.NewCertPool()
		if !o.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("open store: %s holds no certificate in PEM", c.CA)
		}
	}
	if c.Cert == "" && c.Key == "" {
		return nil
	}
	own, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return fmt.Errorf("open store: read own certificate: %w", err)
	}
	o.TLS.Certificates = []tls.Certificate{own}
	return nil
}

// parseURL reads Options.URL.
func parseURL(text string) (o *clickhouse.Options, cluster string, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, "", errors.New("open store: the ClickHouse URL cannot be read: want clickhouse://user:password@host:9000/database") // it may hold a password
	}
	parameters := u.Query()
	cluster = parameters.Get("cluster")
	if strings.ContainsAny(cluster, "'`\\") {
		return nil, "", fmt.Errorf("open store: %q is no name of a cluster", cluster)
	}
	parameters.Del("cluster")
	u.RawQuery = parameters.Encode()
	if o, err = clickhouse.ParseDSN(u.String()); err != nil {
		return nil, "", fmt.Errorf("open store: %w", err)
	}
	if o.Auth.Database == "" {
		o.Auth.Database = defaultDatabase
	}
	if !isName(o.Auth.Database) {
		return nil, "", fmt.Errorf("open store: %q is no name of a database: want letters, digits and _", o.Auth.Database)
	}
	if o.Settings == nil {
		o.Settings = clickhouse.Settings{}
	}
	return o, cluster, nil
}

func isName(s string) bool {
	for _, c := range s {
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != ""
}

// prepare asks the server what it is, and makes the database if it is not there.
func (s *Store) prepare(ctx context.Context, o clickhouse.Options) error {
	o.Auth.Database = "default"
	conn, err := clickhouse.Open(&o)
	if err != nil {
		return err
	}
	defer conn.Close()
	if s.server, err = ask(ctx, conn); err != nil {
		return explain(err, o.TLS != nil)
	}
	var there uint64
	if err := conn.QueryRow(ctx, "SELECT count() FROM system.databases WHERE name = "+quote(s.database)).Scan(&there); err != nil || there > 0 {
		return err
	}
	if err := s.define(ctx, conn, "CREATE DATABASE IF NOT EXISTS "+s.database+s.onCluster()); err != nil {
		return fmt.Errorf("make database %s: %w", s.database, explain(err, o.TLS != nil))
	}
	return nil
}

// Codes of exceptions that say who may come in.
const (
	codeUnknownUser          = 192
	codeWrongPassword        = 193
	codeRequiredPassword     = 194
	codeIPNotAllowed         = 195
	codeAuthenticationFailed = 516
)

// Codes of exceptions that say what a user may not do.
const (
	codeReadonly       = 164
	codeDatabaseDenied = 291
	codeAccessDenied   = 497
)

// explain says what can be done where a first contact failed.
func explain(err error, overTLS bool) error {
	var said *clickhouse.Exception
	var unknownAuthority x509.UnknownAuthorityError
	var notTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &said):
		switch said.Code {
		case codeUnknownUser, codeWrongPassword, codeRequiredPassword, codeIPNotAllowed, codeAuthenticationFailed:
			return fmt.Errorf("the server does not let this user in: check user and password: %w", err)
		case codeReadonly, codeDatabaseDenied, codeAccessDenied:
			return fmt.Errorf("this user may not make what is missing: grant it CREATE, ALTER, DROP, INSERT and SELECT on the database: %w", err)
		}
	case errors.As(err, &unknownAuthority):
		return fmt.Errorf("the server's certificate is of an unknown authority: name its own: %w", err)
	case errors.As(err, &notTLS):
		return fmt.Errorf("the server does not speak TLS on this port: it has another one for that: %w", err)
	case !overTLS && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)):
		return fmt.Errorf("the server hangs up: if it wants TLS, add secure=true to the URL: %w", err)
	}
	return err
}
