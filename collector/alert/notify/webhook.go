package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"text/template"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// templates holds the bodies that Slack, Teams and PagerDuty take.
//
//go:embed templates/*.json
var templates embed.FS

// SignatureHeader holds the time and the signature of a webhook's body:
// t=SECONDS,v1=HEX, which is the HMAC-SHA256 of "SECONDS.BODY".
const SignatureHeader = "X-Flowaudit-Signature"

// webhook posts a body for each alert.
type webhook struct {
	post       *post
	format     func(*alert.Alert) ([]byte, error)
	secretFile string
}

// body is what templates of webhooks see.
type body struct {
	*alert.Alert
	RoutingKey  string // PagerDuty's
	Description string
}

func newWebhook(s *Spec) (w *webhook, err error) {
	w = &webhook{secretFile: s.SecretFile}
	if s.SecretFile != "" {
		if _, err := secret(s.SecretFile); err != nil {
			return nil, err
		}
	}
	if w.post, err = newPost(s); err != nil {
		return nil, err
	}
	switch {
	case s.Template != "" && s.Format != "":
		return nil, errors.New("format and template exclude each other")
	case s.Template != "":
		w.format, err = templated(s.Template, s.RoutingKeyFile)
	case s.Format == "" || s.Format == "json":
		w.format = func(a *alert.Alert) ([]byte, error) { return json.Marshal(a) }
	case s.Format == "ocsf":
		w.format = ocsf
	case s.Format == "slack" || s.Format == "teams" || s.Format == "pagerduty":
		if s.Format == "pagerduty" && s.RoutingKeyFile == "" {
			return nil, errors.New("PagerDuty wants routing_key_file, a file with the integration's key")
		}
		text, readErr := templates.ReadFile("templates/" + s.Format + ".json")
		if readErr != nil {
			return nil, readErr
		}
		w.format, err = templated(string(text), s.RoutingKeyFile)
	default:
		return nil, fmt.Errorf("format: %q is not one of json, ocsf, slack, teams, pagerduty", s.Format)
	}
	return w, err
}

// templated makes bodies by a template, which is tried at once.
func templated(text, keyFile string) (func(*alert.Alert) ([]byte, error), error) {
	t, err := template.New("template").Option("missingkey=zero").Funcs(alert.Funcs()).Parse(text)
	if err != nil {
		return nil, err
	}
	format := func(a *alert.Alert) ([]byte, error) {
		data := body{Alert: a, Description: description(a)}
		if keyFile != "" {
			if data.RoutingKey, err = secret(keyFile); err != nil {
				return nil, err
			}
		}
		var out bytes.Buffer
		if err := t.Execute(&out, data); err != nil {
			return nil, refusedError{err}
		}
		return out.Bytes(), nil
	}
	bare := &alert.Alert{Rule: "coverage-lost", State: alert.Resolved, Node: "n1", Ended: time.Unix(1, 0)}
	for _, a := range []*alert.Alert{alert.Sample(), bare} {
		if _, err := format(a); err != nil {
			return nil, err
		}
	}
	return format, nil
}

// Batch implements Sender.
func (*webhook) Batch() int { return 1 }

// Send implements Sender.
func (w *webhook) Send(ctx context.Context, alerts []alert.Alert) error {
	for i := range alerts {
		text, err := w.format(&alerts[i])
		if err != nil {
			return err
		}
		headers := http.Header{"X-Flowaudit-Alert": {alerts[i].ID}}
		if w.secretFile != "" {
			key, err := secret(w.secretFile)
			if err != nil {
				return err
			}
			headers.Set(SignatureHeader, Sign(text, key, time.Now()))
		}
		if err := w.post.send(ctx, "", "application/json", text, headers); err != nil {
			return err
		}
	}
	return nil
}

// Sign makes the value of SignatureHeader.
func Sign(body []byte, key string, at time.Time) string {
	seconds := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(seconds + "."))
	mac.Write(body)
	return "t=" + seconds + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
