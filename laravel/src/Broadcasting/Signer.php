<?php

declare(strict_types=1);

namespace Realtime\Laravel\Broadcasting;

use Realtime\Exception\ConfigError;

/**
 * Signatures and encryption of Pusher Channels: what tells a hub that this application lets a
 * connection join, and what keeps an encrypted channel's messages from the hub.
 */
final class Signer
{
    private ?string $masterKey;

    public function __construct(
        private ?string $key,
        #[\SensitiveParameter] private ?string $secret,
        #[\SensitiveParameter] ?string $masterKey = null,
    ) {
        $this->masterKey = $masterKey === null || $masterKey === '' ? null : (string) base64_decode($masterKey, true);
        if ($this->masterKey !== null && strlen($this->masterKey) !== 32) {
            throw new ConfigError('realtime.encryption_master_key must be 32 bytes in base64');
        }
    }

    /** @return array{auth: string, channel_data?: string} lets the connection join the channel */
    public function channel(string $socketId, string $channel, ?string $channelData = null): array
    {
        return $channelData === null
            ? ['auth' => $this->sign("$socketId:$channel")]
            : ['auth' => $this->sign("$socketId:$channel:$channelData"), 'channel_data' => $channelData];
    }

    /** @return array{auth: string, user_data: string} says who the connection belongs to */
    public function user(string $socketId, string $userData): array
    {
        return ['auth' => $this->sign("$socketId::user::$userData"), 'user_data' => $userData];
    }

    /** The key of an encrypted channel, as its subscribers get it. */
    public function sharedSecret(string $channel): string
    {
        return base64_encode($this->channelKey($channel));
    }

    /** The JSON that goes out on an encrypted channel in place of this one. */
    public function encrypt(string $channel, string $json): string
    {
        $key = $this->channelKey($channel);
        $nonce = random_bytes(SODIUM_CRYPTO_SECRETBOX_NONCEBYTES);

        return json_encode([
            'nonce' => base64_encode($nonce),
            'ciphertext' => base64_encode(sodium_crypto_secretbox($json, $nonce, $key)),
        ], JSON_THROW_ON_ERROR | JSON_UNESCAPED_SLASHES);
    }

    private function channelKey(string $channel): string
    {
        if ($this->masterKey === null) {
            throw new ConfigError("channel $channel is encrypted: set realtime.encryption_master_key");
        }
        if (!function_exists('sodium_crypto_secretbox')) {
            throw new ConfigError("channel $channel is encrypted: PHP's sodium extension is needed");
        }

        return hash('sha256', $channel . $this->masterKey, true);
    }

    private function sign(string $text): string
    {
        if (($this->key ?? '') === '' || ($this->secret ?? '') === '') {
            throw new ConfigError('realtime.app.key and realtime.app.secret are not set; `php artisan realtime:install` makes them');
        }

        return $this->key . ':' . hash_hmac('sha256', $text, $this->secret);
    }
}
