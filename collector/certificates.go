package collector

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificates are those of the listening sockets, read again when their files
// have changed. What cannot be read then does not replace what is good.
type certificates struct {
	options    *ListenOptions
	clientAuth tls.ClientAuthType
	log        *slog.Logger

	mu      sync.Mutex
	config  *tls.Config
	stamps  []time.Time // of the files that config was read from
	checked time.Time
}

// checkInterval is how old the knowledge may be that files have not changed.
const checkInterval = time.Second

// openCertificates reads them for the first time; nil where TLS is off.
func openCertificates(o *ListenOptions, clientAuth tls.ClientAuthType, log *slog.Logger) (*certificates, error) {
	if o.Cert == "" {
		return nil, nil
	}
	c := &certificates{options: o, clientAuth: clientAuth, log: log, checked: time.Now()}
	var err error
	if c.stamps, err = c.stat(); err != nil {
		return nil, err
	}
	c.config, err = c.read()
	return c, err
}

// tls is a configuration that takes the newest certificates for each handshake;
// nil where TLS is off.
func (c *certificates) tls() *tls.Config {
	if c == nil {
		return nil
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil },
	}
}

func (c *certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.checked) < checkInterval {
		return c.config
	}
	c.checked = now
	stamps, err := c.stat()
	if err == nil && equalTimes(stamps, c.stamps) {
		return c.config
	}
	var fresh *tls.Config
	if err == nil {
		fresh, err = c.read()
	}
	if err != nil {
		c.log.Error("new certificates cannot be used, the last ones stay", "error", err)
		c.stamps = stamps // said once for each change
		return c.config
	}
	c.config, c.stamps = fresh, stamps
	c.log.Info("certificates were read again", "certificate", c.options.Cert)
	return c.config
}

func equalTimes(a, b []time.Time) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].Equal(b[i]) {
			return false
		}
	}
	return true
}

// stat gives when each file was written.
func (c *certificates) stat() ([]time.Time, error) {
	var out []time.Time
	for _, f := range []string{c.options.Cert, c.options.Key, c.options.ClientCA} {
		if f == "" {
			continue
		}
		info, err := os.Stat(f)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		out = append(out, info.ModTime())
	}
	return out, nil
}

func (c *certificates) read() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.options.Cert, c.options.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	// A configuration of its own lacks what the server was given: HTTP/2 for one.
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
	if c.options.ClientCA == "" {
		return config, nil
	}
	pem, err := os.ReadFile(c.options.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("read client authorities: %w", err)
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read client authorities: no certificate in %s", c.options.ClientCA)
	}
	config.ClientAuth = c.clientAuth
	return config, nil
}
