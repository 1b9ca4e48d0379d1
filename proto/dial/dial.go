// Package dial opens the connection from an agent or an asker to a collector.
package dial

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
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
}

// Flags adds the TLS options to a flag set.
func (o *Options) Flags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.TLS, "tls", o.TLS, "connect with TLS")
	fs.StringVar(&o.CA, "tls-ca", o.CA, "PEM `file` of the authorities that sign the collector's certificate (default: the system's)")
	fs.StringVar(&o.Cert, "tls-cert", o.Cert, "PEM `file` of this side's certificate, for mutual TLS")
	fs.StringVar(&o.Key, "tls-key", o.Key, "PEM `file` of this side's private key, for mutual TLS")
	fs.StringVar(&o.ServerName, "tls-server-name", o.ServerName, "`name` in the collector's certificate, if it is not the address's host")
}

// Conn prepares a connection. It is made when first used.
func (o Options) Conn() (*grpc.ClientConn, error) {
	creds, err := o.credentials()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(o.Address,
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("prepare connection to %s: %w", o.Address, err)
	}
	return conn, nil
}

func (o Options) credentials() (credentials.TransportCredentials, error) {
	if !o.TLS && o.CA == "" && o.Cert == "" && o.Key == "" && o.ServerName == "" {
		return insecure.NewCredentials(), nil
	}
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
	}
	return credentials.NewTLS(config), nil
}
