<?php

/*
 * Composer's autoloader if there is one. Without it, Laravel comes from Debian's php-laravel-framework, and the package
 * from this repository, which is how the tests run the example.
 */

declare(strict_types=1);

$vendor = dirname(__DIR__) . '/vendor/autoload.php';
if (is_file($vendor)) {
    return require $vendor;
}

error_reporting(E_ALL & ~E_DEPRECATED);
require_once '/usr/share/php/Illuminate/autoload.php';

spl_autoload_register(static function (string $class): void {
    $package = dirname(__DIR__, 3) . '/laravel';
    foreach (['App\\' => dirname(__DIR__) . '/app', 'Realtime\\Laravel\\' => "$package/src", 'Realtime\\' => "$package/polyfill"] as $prefix => $path) {
        if (str_starts_with($class, $prefix) && is_file($file = $path . '/' . strtr(substr($class, strlen($prefix)), '\\', '/') . '.php')) {
            require $file;

            return;
        }
    }
});
require_once dirname(__DIR__, 3) . '/laravel/polyfill/functions.php';
