package notify

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// Spec is a notifier as a file describes it. Which fields mean something
// depends on the type.
type Spec struct {
	Type string `yaml:"type"`
	Name string `yaml:"name"` // the type, unless there are several
	// Match restricts it to alerts whose labels match: severity=critical, source=~shop/.*
	Match        []string       `yaml:"match"`
	SendResolved *bool          `yaml:"send_resolved"` // true unless it says otherwise
	GiveUpAfter  alert.Duration `yaml:"give_up_after"` // 24h

	URL      string            `yaml:"url"`
	URLFile  string            `yaml:"url_file"` // holds the URL, which may be a secret
	Headers  map[string]string `yaml:"headers"`
	Timeout  alert.Duration    `yaml:"timeout"` // 10s
	CAFile   string            `yaml:"ca_file"`
	CertFile string            `yaml:"cert_file"`
	KeyFile  string            `yaml:"key_file"`

	Format         string `yaml:"format"`
	Template       string `yaml:"template"`
	SecretFile     string `yaml:"secret_file"`      // signs webhooks
	TokenFile      string `yaml:"token_file"`       // a bearer token
	RoutingKeyFile string `yaml:"routing_key_file"` // PagerDuty's

	Facility string `yaml:"facility"` // of syslog
}

// fields are those that a type knows beside the common ones.
var fields = map[string][]string{
	"alertmanager": {"url", "url_file", "headers", "timeout", "ca_file", "cert_file", "key_file", "token_file"},
	"webhook":      {"url", "url_file", "headers", "timeout", "ca_file", "cert_file", "key_file", "token_file", "format", "template", "secret_file", "routing_key_file"},
	"events":       {},
	"syslog":       {"url", "url_file", "timeout", "ca_file", "cert_file", "key_file", "format", "facility"},
	"otlp":         {"url", "url_file", "headers", "timeout", "ca_file", "cert_file", "key_file", "token_file"},
}

// Types lists the types of notifiers.
func Types() []string { return []string{"alertmanager", "webhook", "events", "syslog", "otlp"} }

const (
	defaultTimeout = 10 * time.Second
	defaultGiveUp  = 24 * time.Hour
)

// Parse reads notifiers. One that cannot be used is named; the others are there.
func Parse(nodes []*yaml.Node, o Options) (targets []*Target, problems []alert.Problem) {
	for _, n := range nodes {
		s := Spec{}
		of := fmt.Sprintf("notifier at line %d", n.Line)
		if bad := alert.Decode(n, &s, of); len(bad) > 0 {
			problems = append(problems, bad...)
			continue
		}
		if s.Name == "" {
			s.Name = s.Type
		}
		t, err := s.target(o)
		if err == nil && slices.ContainsFunc(targets, func(o *Target) bool { return o.Name == t.Name }) {
			err = errors.New("there is another notifier of this name: give it one of its own")
		}
		if err == nil {
			err = unusedFields(n, s.Type)
		}
		if err != nil {
			problems = append(problems, alert.Problem{Line: n.Line, Of: "notifier " + s.Name, Text: err.Error()})
			continue
		}
		targets = append(targets, t)
	}
	return targets, problems
}

// unusedFields names a field that the type does not know.
func unusedFields(n *yaml.Node, kind string) error {
	known := append([]string{"type", "name", "match", "send_resolved", "give_up_after"}, fields[kind]...)
	for i := 0; i+1 < len(n.Content); i += 2 {
		if !slices.Contains(known, n.Content[i].Value) {
			return fmt.Errorf("a notifier of type %s has no field %s: want some of %s", kind, n.Content[i].Value, strings.Join(known, ", "))
		}
	}
	return nil
}

// Alertmanager is the target of a --alertmanager flag.
func Alertmanager(rawURL string, o Options) (*Target, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("--alertmanager %q: want a URL such as http://alertmanager:9093", rawURL)
	}
	s := Spec{Type: "alertmanager", Name: "alertmanager-" + strings.ReplaceAll(u.Host, ":", "-"), URL: rawURL}
	return s.target(o)
}

func (s *Spec) target(o Options) (*Target, error) {
	if !isName(s.Name) {
		return nil, fmt.Errorf("%q is no name: want letters, digits, dots and dashes", s.Name)
	}
	t := &Target{Name: s.Name, Type: s.Type, giveUp: time.Duration(s.GiveUpAfter), resolved: s.SendResolved == nil || *s.SendResolved}
	if t.giveUp == 0 {
		t.giveUp = defaultGiveUp
	}
	for _, text := range s.Match {
		m, err := alert.ParseMatcher(text)
		if err != nil {
			return nil, err
		}
		t.match = append(t.match, m)
	}
	if s.Timeout == 0 {
		s.Timeout = alert.Duration(defaultTimeout)
	}
	var err error
	switch s.Type {
	case "alertmanager":
		t.sender, err = newAlertmanager(s)
	case "webhook":
		t.sender, err = newWebhook(s)
	case "syslog":
		t.sender, err = newSyslog(s)
	case "otlp":
		t.sender, err = newOTLP(s)
	case "events":
		if o.Events == nil {
			return nil, errors.New("events need an API server: give --in-cluster or --kubeconfig")
		}
		t.sender = o.Events
	default:
		err = fmt.Errorf("type: %q is not one of %s", s.Type, strings.Join(Types(), ", "))
	}
	return t, err
}

func isName(s string) bool {
	for _, c := range s {
		if c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != "" && s != "." && s != ".."
}

// address reads the URL; it is read again from its file for each request, as
// secrets are rotated.
func (s *Spec) address(schemes ...string) (func() (string, error), error) {
	if (s.URL == "") == (s.URLFile == "") {
		return nil, errors.New("want one of url and url_file")
	}
	check := func(text string) error {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
			return fmt.Errorf("url: want one that begins with %s://", strings.Join(schemes, ":// or ")) // it may be a secret
		}
		return nil
	}
	if s.URL != "" {
		return func() (string, error) { return s.URL, nil }, check(s.URL)
	}
	read := func() (string, error) {
		text, err := secret(s.URLFile)
		if err == nil {
			err = check(text)
		}
		return text, err
	}
	_, err := read()
	return read, err
}

// secret reads a file that holds one.
func secret(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return "", fmt.Errorf("read secret: %s is empty", file)
	}
	return strings.TrimSpace(string(text)), nil
}

func (s *Spec) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if (s.CertFile == "") != (s.KeyFile == "") {
		return nil, errors.New("cert_file and key_file belong together")
	}
	if s.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if s.CAFile != "" {
		text, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read authorities: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read authorities: %s holds no certificate", s.CAFile)
		}
	}
	return c, nil
}

func (s *Spec) client() (*http.Client, error) {
	c, err := s.tls()
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = c
	return &http.Client{
		Transport: transport, Timeout: time.Duration(s.Timeout),
		// A redirected POST would become a GET, and tell a secret to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// Options configure a Dispatcher.
type Options struct {
	Dir string // of the queues; made if it is not there
	Log *slog.Logger
	// Events is the sender of notifiers of type events; nil if there is no cluster.
	Events Sender
	// Delivered is called when a notifier was told of an alert, or it was given up.
	Delivered func(a *alert.Alert, notifier string)
}
