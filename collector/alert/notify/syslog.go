package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// syslog sends messages of RFC 5424 over UDP (RFC 5426), TCP (RFC 6587, counted
// octets) or TLS (RFC 5425).
type syslog struct {
	address  func() (string, error)
	tls      *tls.Config
	timeout  time.Duration
	format   func(*alert.Alert) ([]byte, error)
	facility int
	hostname string
}

var facilities = []string{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
	"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

func newSyslog(s *Spec) (n *syslog, err error) {
	n = &syslog{timeout: time.Duration(s.Timeout)}
	if n.address, err = s.address("udp", "tcp", "tls"); err != nil {
		return nil, err
	}
	if n.tls, err = s.tls(); err != nil {
		return nil, err
	}
	facility := s.Facility
	if facility == "" {
		facility = "local0"
	}
	if n.facility = slices.Index(facilities, facility); n.facility < 0 {
		return nil, fmt.Errorf("facility: %q is not one of %s", facility, strings.Join(facilities, ", "))
	}
	switch s.Format {
	case "", "text":
		n.format = func(a *alert.Alert) ([]byte, error) { return []byte(plainText(a)), nil }
	case "cef":
		n.format = func(a *alert.Alert) ([]byte, error) { return []byte(cef(a)), nil }
	case "ocsf":
		n.format = ocsf
	default:
		return nil, fmt.Errorf("format: %q is not one of text, cef, ocsf", s.Format)
	}
	if n.hostname, err = os.Hostname(); err != nil {
		n.hostname = "-"
	}
	return n, nil
}

// Batch implements Sender.
func (*syslog) Batch() int { return 64 }

// Send implements Sender.
func (n *syslog) Send(ctx context.Context, alerts []alert.Alert) error {
	address, err := n.address()
	if err != nil {
		return err
	}
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("url: cannot be read")
	}
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	conn, err := n.dial(ctx, u)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", u.Host, err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	for i := range alerts {
		message, err := n.message(&alerts[i])
		if err != nil {
			return refusedError{err}
		}
		if u.Scheme != "udp" {
			message = append([]byte(fmt.Sprintf("%d ", len(message))), message...)
		}
		if _, err := conn.Write(message); err != nil {
			return fmt.Errorf("write to %s: %w", u.Host, err)
		}
	}
	return nil
}

func (n *syslog) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), map[string]string{"udp": "514", "tcp": "601", "tls": "6514"}[u.Scheme])
	}
	if u.Scheme == "tls" {
		d := tls.Dialer{Config: n.tls}
		return d.DialContext(ctx, "tcp", host)
	}
	var d net.Dialer
	return d.DialContext(ctx, u.Scheme, host)
}

// enterprise is the number of structured data: there is none of this
// project's, and RFC 5612 has this one for examples.
const enterprise = "flowaudit@32473"

// message is a message of RFC 5424.
func (n *syslog) message(a *alert.Alert) ([]byte, error) {
	text, err := n.format(a)
	if err != nil {
		return nil, err
	}
	severity := map[string]int{"critical": 2, "warning": 4, "info": 6}[a.Severity]
	if a.State == alert.Resolved {
		severity = 5
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%d>1 %s %s flowaudit %d %s [%s", n.facility*8+severity, happened(a).UTC().Format("2006-01-02T15:04:05.000Z07:00"),
		name(n.hostname, 255), os.Getpid(), name(a.Rule, 32), enterprise)
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`)
	for _, p := range [][2]string{
		{"id", a.ID},
		{"state", string(a.State)},
		{"severity", a.Severity},
		{"cluster", a.Cluster},
		{"source", endText(a.From)},
		{"destination", endText(a.To)},
		{"port", portText(a)},
		{"count", fmt.Sprint(a.Count)},
		{"node", a.Node},
	} {
		if p[1] != "" {
			fmt.Fprintf(&b, ` %s="%s"`, p[0], escape.Replace(p[1]))
		}
	}
	b.WriteString("] ")
	if !bytes.HasPrefix(text, []byte("CEF:")) && !bytes.HasPrefix(text, []byte("{")) {
		b.WriteString("\xef\xbb\xbf") // says that it is UTF-8; parsers of CEF and JSON stumble over it
	}
	b.Write(bytes.ReplaceAll(text, []byte("\n"), []byte(" ")))
	return b.Bytes(), nil
}

func endText(e *alert.End) string {
	if e == nil {
		return ""
	}
	return e.String()
}

func portText(a *alert.Alert) string {
	if a.Port == 0 {
		return ""
	}
	return a.PortText()
}

// name is a header field: printable ASCII of a length.
func name(s string, length int) string {
	out := strings.Map(func(r rune) rune {
		if r < 33 || r > 126 {
			return '_'
		}
		return r
	}, s)
	if len(out) > length {
		out = out[:length]
	}
	if out == "" {
		return "-"
	}
	return out
}

// plainText is an alert in a line.
func plainText(a *alert.Alert) string {
	parts := []string{fmt.Sprintf("[%s] %s", a.State, a.Summary), description(a)}
	for _, p := range []string{a.Explanation, a.NearestMiss, a.Command} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "; ")
}
