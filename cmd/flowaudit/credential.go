package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"github.com/flowaudit/flowaudit/kube"
)

// credential is what shows to the collector who asks, where no file is named:
// what kubectl would show to the API server.
type credential struct {
	getenv  func(string) string
	context string // of the kubeconfig
	account string // ServiceAccount, namespace/name, that asks instead
	none    bool

	mu      sync.Mutex
	problem error // why there is nothing to show
}

// readerAudience is what the collector's --reader-audience is unless it was changed.
const readerAudience = "flowaudit-reader"

func (c *credential) flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.context, "token-context", "", "`name` of the kubeconfig's context that says who asks (default: its current one)")
	fs.StringVar(&c.account, "token-account", "", "ServiceAccount, `namespace/name`, that asks instead, by a token requested for it")
	fs.BoolVar(&c.none, "no-token", false, "show the collector nothing of the kubeconfig")
}

// access is that of kubectl; false if there is none.
func (c *credential) access() (kube.Access, bool) {
	a := kube.Access{Context: c.context}
	return a, a.Usual(c.getenv)
}

// token shows who asks; empty where the kubeconfig has nothing to show.
func (c *credential) token(ctx context.Context) (string, error) {
	a, any := c.access()
	if !any {
		c.fault(errors.New("there is no kubeconfig"))
		return "", nil
	}
	token, err := a.Token(ctx, kube.TokenOptions{UserAgent: "flowaudit/" + version, Audience: readerAudience, Account: c.account})
	switch {
	case err != nil && (c.account != "" || ctx.Err() != nil):
		return "", err
	case err != nil:
		c.fault(err) // the collector may not ask for any
	case token == "":
		c.fault(fmt.Errorf("%s has no token", &a))
	}
	return token, nil
}

// certificate is the kubeconfig's, if it has one.
func (c *credential) certificate() (*tls.Certificate, error) {
	a, any := c.access()
	if !any {
		return nil, nil
	}
	found, err := a.Certificate()
	if err != nil {
		c.fault(err)
	}
	return found, nil
}

func (c *credential) fault(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problem = err
}

// explain adds to the collector's word why nothing was shown.
func (c *credential) explain(message string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem == nil || strings.Contains(message, c.problem.Error()) {
		return message
	}
	return fmt.Sprintf("%s (%v)", message, c.problem)
}
