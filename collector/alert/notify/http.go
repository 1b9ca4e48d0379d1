package notify

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// post is a request that is sent anew each time.
type post struct {
	client    *http.Client
	address   func() (string, error)
	headers   map[string]string
	tokenFile string
}

func newPost(s *Spec) (*post, error) {
	address, err := s.address("http", "https")
	if err != nil {
		return nil, err
	}
	client, err := s.client()
	if err != nil {
		return nil, err
	}
	if s.TokenFile != "" {
		if _, err := secret(s.TokenFile); err != nil {
			return nil, err
		}
	}
	return &post{client, address, s.Headers, s.TokenFile}, nil
}

// send posts a body; path is added to the address.
func (p *post) send(ctx context.Context, path, contentType string, body []byte, more http.Header) error {
	address, err := p.address()
	if err != nil {
		return err
	}
	if path != "" {
		address = strings.TrimRight(address, "/") + path
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	for k, v := range more {
		r.Header[k] = v
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("User-Agent", "flowaudit")
	for k, v := range p.headers {
		r.Header.Set(k, v)
	}
	if p.tokenFile != "" {
		token, err := secret(p.tokenFile)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := p.client.Do(r)
	if err != nil {
		return withoutURL(err)
	}
	defer response.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(response.Body, 512)) // what cannot be read cannot be told
	if response.StatusCode/100 == 2 {
		return nil
	}
	err = fmt.Errorf("it answers %s: %s", response.Status, strings.TrimSpace(string(said)))
	switch response.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return refusedError{err}
	}
	if seconds, bad := strconv.Atoi(response.Header.Get("Retry-After")); bad == nil && seconds > 0 {
		return laterError{err, time.Duration(min(seconds, 3600)) * time.Second}
	}
	return err
}
