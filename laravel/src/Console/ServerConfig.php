<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

/** The hub's settings as `config/realtime.php` and the application have them. */
final class ServerConfig
{
    /** @return array<string, mixed> as `Realtime\start()` takes it */
    public static function from(array $realtime, ?string $appUrl): array
    {
        $config = self::withoutNulls($realtime['server'] ?? []);
        $app = $realtime['app'] ?? [];
        if (!isset($config['apps']) && ($app['key'] ?? '') !== '' && ($app['secret'] ?? '') !== '') {
            $config['apps'] = [['name' => 'default', 'id' => (string) ($app['id'] ?? 'default'), 'key' => (string) $app['key'], 'secret' => (string) $app['secret']]];
        }
        if (!isset($config['allowed_origins']) && ($origin = self::origin($appUrl)) !== null) {
            // Besides what is allowed where nothing is said.
            $config['allowed_origins'] = ['default', $origin];
        }

        return $config;
    }

    /** @return array<string, string> the same for the program `realtime`, whose secrets belong in no argument */
    public static function environment(array $config): array
    {
        $variables = [];
        foreach ($config as $name => $value) {
            $name = 'REALTIME_' . strtoupper((string) $name);
            if (is_array($value) && $value !== [] && !array_is_list($value)) {
                foreach (self::environment($value) as $inner => $text) {
                    $variables[$name . '__' . substr($inner, strlen('REALTIME_'))] = $text;
                }
            } else {
                $variables[$name] = is_array($value) ? json_encode($value, JSON_THROW_ON_ERROR | JSON_UNESCAPED_SLASHES) : (is_bool($value) ? ($value ? 'true' : 'false') : (string) $value);
            }
        }

        return $variables;
    }

    /** Scheme, host and port of an address. */
    private static function origin(?string $url): ?string
    {
        $parts = parse_url((string) $url);
        if (!isset($parts['scheme'], $parts['host'])) {
            return null;
        }

        return "$parts[scheme]://$parts[host]" . (isset($parts['port']) ? ":$parts[port]" : '');
    }

    private static function withoutNulls(array $values): array
    {
        $kept = [];
        foreach ($values as $name => $value) {
            $isTable = is_array($value) && !array_is_list($value);
            $value = $isTable ? self::withoutNulls($value) : $value;
            // A table of which nothing is set is not set either.
            if ($value !== null && !($isTable && $value === [])) {
                $kept[$name] = $value;
            }
        }

        return $kept;
    }
}
