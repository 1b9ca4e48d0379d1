package collector

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// ListenOptions say where the collector listens and how callers can be sure of it.
type ListenOptions struct {
	Address   string // host:port, or unix:PATH
	Cert, Key string // PEM files: TLS is on with them
	ClientCA  string // PEM file: callers must show a certificate that it signs
	// Insecure allows an address beyond loopback without TLS.
	Insecure bool
	// HTTP is where the services that people ask are served as JSON over HTTP, with the same
	// certificates; empty for nowhere.
	HTTP string
}

// validate refuses to give flows away in the clear.
func (o *ListenOptions) validate() error {
	switch {
	case (o.Cert == "") != (o.Key == ""):
		return errors.New("--tls-cert and --tls-key belong together: give both or none")
	case o.ClientCA != "" && o.Cert == "":
		return errors.New("--tls-client-ca needs --tls-cert and --tls-key")
	case strings.TrimRight(o.Address, "/") == "unix:":
		return errors.New("--listen unix: names no socket: want unix:PATH")
	case o.HTTP != "" && strings.HasPrefix(o.HTTP, "unix:"):
		return errors.New("--listen-http: want host:port")
	}
	for _, address := range []string{o.Address, o.HTTP} {
		if err := o.validateAddress(address); err != nil {
			return err
		}
	}
	return nil
}

func (o *ListenOptions) validateAddress(address string) error {
	if address == "" && o.Address != "" || strings.HasPrefix(address, "unix:") || o.Cert != "" || o.Insecure {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("read address to listen on: %w", err)
	}
	if loopback(host) {
		return nil
	}
	return fmt.Errorf("listen on %s: without TLS anybody who reaches this address could read and forge flows: "+
		"give --tls-cert and --tls-key, listen on loopback, or say --insecure", address)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// local reports whether nobody beyond this machine reaches the collector.
func (o *ListenOptions) local() bool {
	host, _, err := net.SplitHostPort(o.Address)
	return strings.HasPrefix(o.Address, "unix:") || err == nil && loopback(host)
}

// allLocal is the same of HTTP as well.
func (o *ListenOptions) allLocal() bool {
	host, _, err := net.SplitHostPort(o.HTTP)
	return o.local() && (o.HTTP == "" || err == nil && loopback(host))
}

func (o *ListenOptions) listen() (net.Listener, error) {
	path, unix := strings.CutPrefix(o.Address, "unix:")
	if !unix {
		l, err := net.Listen("tcp", o.Address)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", o.Address, err)
		}
		return l, nil
	}
	path = strings.TrimPrefix(path, "//")
	if err := removeStaleSocket(path); err != nil {
		return nil, err
	}
	// The socket's mode is its access control. Set on the descriptor, it is the
	// file's from the first moment: nobody slips in before a chmod.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", o.Address, err)
	}
	return l, nil
}

// removeStaleSocket removes what a killed collector left behind, never a
// socket that somebody listens on.
func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return nil // net.Listen says what is wrong
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("listen on unix:%s: another collector listens there", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen on unix:%s: somebody may listen there: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// serverCredentials are those of the gRPC server for a TLS configuration; nil is none.
func serverCredentials(config *tls.Config) credentials.TransportCredentials {
	if config == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(config)
}
